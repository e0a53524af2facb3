"""Reads JSON that arrives in pieces, and writes it again as `json_text` writes its value."""

from __future__ import annotations

import json
import re

from longcat.chat.tool_text import json_text

_PLAIN = re.compile(r'[^"\\]+')
# An escape, or a pair of them for one character.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^u])")
_HIGH_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")
_WORD = re.compile(r'[^\s{}\[\],:"]+')  # a number, true, false or null
_MARKS = {",": ", ", ":": ": "}


class JsonStream:
    """Takes one value, which has to be JSON, piece by piece. Numbers and escapes are held until they are whole."""

    def __init__(self) -> None:
        self._in_text = False
        self._held = ""

    def push(self, piece: str) -> str:
        """Returns the text that is certain now."""
        buffer, at = self._held + piece, 0
        told: list[str] = []
        while at < len(buffer):
            taken = self._take_in_text(buffer, at, told) if self._in_text else self._take(buffer, at, told)
            if taken == 0:
                break
            at += taken
        self._held = buffer[at:]
        return "".join(told)

    def finish(self) -> str:
        """Returns the held text at the end of the value."""
        held, self._held = self._held, ""
        return _same(held) if held else ""

    def cut(self) -> str:
        """Returns the held text unchanged, because the value was cut off."""
        held, self._held = self._held, ""
        return held

    def _take(self, buffer: str, at: int, told: list[str]) -> int:
        """Returns the number of characters taken from the buffer; 0 if it needs more."""
        char = buffer[at]
        word = _WORD.match(buffer, at)
        if word is not None:
            if word.end() == len(buffer):
                return 0
            told.append(_same(word[0]))
            return len(word[0])
        if not char.isspace():
            told.append(_MARKS.get(char, char))
            self._in_text = char == '"'
        return 1

    def _take_in_text(self, buffer: str, at: int, told: list[str]) -> int:
        plain = _PLAIN.match(buffer, at)
        if plain is not None:
            told.append(plain[0])
            return len(plain[0])
        if buffer[at] == '"':
            told.append('"')
            self._in_text = False
            return 1
        escape = None if _HIGH_HALF.match(buffer, at) else _ESCAPE.match(buffer, at)
        if escape is None:
            return 0
        told.append(_same(f'"{escape[0]}"')[1:-1])
        return len(escape[0])


def _same(text: str) -> str:
    try:
        return json_text(json.loads(text))
    except ValueError:
        return text
