"""Calls of a conversation's past whose arguments are no JSON object: shown to the model as it wrote them.

A template needs arguments as an object. A call that `max_tokens` cut off has none. Then all calls of its message become
part of the content, in the model's own form and with its real tags.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from json.decoder import JSONDecoder

from longcat.chat.tool_text import CALL, CALL_END, KEY, KEY_END, VALUE, VALUE_END, json_value
from longcat.support.json_types import Json, JsonObject

_DECODER = JSONDecoder()
_LONGEST_ESCAPE = 6  # characters of \uXXXX


class TaggedText(str):
    """A text of which some parts are tags of ours, and all others are data.

    Args:
        parts: (text, whether it is tags).
    """

    parts: tuple[tuple[str, bool], ...]

    def __new__(cls, parts: Iterable[tuple[str, bool]]) -> TaggedText:
        parts = tuple(parts)
        made = super().__new__(cls, "".join(text for text, _ in parts))
        made.parts = parts
        return made

    def translated(self, table: Mapping[int, str]) -> str:
        """Returns the text with its data translated, and its tags unchanged."""
        return "".join(text if is_tag else text.translate(table) for text, is_tag in self.parts)


def with_calls(content: str, calls: Sequence[Mapping[str, Json]]) -> TaggedText:
    """Returns a content with its calls behind it. Arguments are objects, or texts that are no objects."""
    parts: list[tuple[str, bool]] = [(content, False)]
    for call in calls:
        function = call["function"]
        parts += [(CALL, True), (function["name"] + "\n", False)]
        arguments = function["arguments"]
        if isinstance(arguments, Mapping):
            parts += _pairs(arguments.items())
            parts.append((f"{CALL_END}\n", True))
        elif (read := _read_cut(arguments)) is None:
            parts += [(arguments, False), (f"\n{CALL_END}\n", True)]
        else:
            parts += _pairs(read[0])
            if read[1] is not None:
                key, value = read[1]
                parts += [(KEY, True), (key, False), (f"{KEY_END}\n{VALUE}", True), (value, False)]
    return TaggedText(parts)


def whole_arguments(text: str) -> JsonObject:
    """Returns the complete arguments of a JSON object, which may lack its end."""
    value = json_value(text)
    if isinstance(value, dict):
        return value
    pairs, _ = _read_cut(text) or ((), None)
    return dict(pairs)


def _pairs(pairs: Iterable[tuple[str, object]]) -> Iterable[tuple[str, bool]]:
    for key, value in pairs:
        yield from ((KEY, True), (key, False), (f"{KEY_END}\n{VALUE}", True))
        yield from ((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), False),)
        yield (f"{VALUE_END}\n", True)


def _read_cut(text: str) -> tuple[list[tuple[str, Json]], tuple[str, str] | None] | None:
    """The pairs of a JSON object that has no end, and the one it was cut off in; None if it is no such beginning."""
    pairs: list[tuple[str, Json]] = []
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        return None
    at = _skip(text, at + 1)
    while at < len(text):
        try:
            key, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return (pairs, None) if text[at] == '"' and '"' not in text[at + 1 :] else None
        at = _skip(text, at)
        if not isinstance(key, str) or text[at : at + 1] not in (":", ""):
            return None
        at = _skip(text, at + 1)
        if at >= len(text):
            return pairs, (key, "")
        start = at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return pairs, (key, _cut_text(text[start:]))
        at = _skip(text, at)
        if at >= len(text) and not isinstance(value, (str, list, dict)):
            return pairs, (key, text[start:])  # a number may go on
        pairs.append((key, value))
        if text[at : at + 1] not in (",", ""):
            return None
        at = _skip(text, at + 1)
    return pairs, None


def _cut_text(text: str) -> str:
    """Returns the text that an unfinished JSON text stands for; other values unchanged."""
    if not text.startswith('"'):
        return text
    for cut in range(_LONGEST_ESCAPE):
        try:
            return str(json.loads(text[: len(text) - cut] + '"', strict=False))
        except ValueError:
            continue
    return text


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at
