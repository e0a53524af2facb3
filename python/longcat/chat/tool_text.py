"""The text of tool calls: tags, and the values between them."""

from __future__ import annotations

import json
import re

from longcat.support.json_types import Json

THINK, THINK_END = "<longcat_think>", "</longcat_think>"
CALL, CALL_END = "<longcat_tool_call>", "</longcat_tool_call>"
KEY, KEY_END = "<longcat_arg_key>", "</longcat_arg_key>"
VALUE, VALUE_END = "<longcat_arg_value>", "</longcat_arg_value>"
TAG_STARTS = ("<longcat_", "</longcat_")  # no argument can spell these

NOT_JSON = object()
_MAX_DEPTH = 100
_JS_TOKEN = re.compile(
    r"""\s+|[{}\[\]:,]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[A-Za-z_$][\w$]*|-?[\d.][\w.+-]*""", re.DOTALL
)
_JS_WORDS = {
    "true": "true",
    "false": "false",
    "null": "null",
    "undefined": "null",
    "True": "true",
    "False": "false",
    "None": "null",
}


def spells_tag(text: str) -> bool:
    """Returns whether a text contains something that would be read as a tag."""
    return any(start in text for start in TAG_STARTS)


def json_value(text: str) -> Json:
    """Returns the JSON value of `text`; NOT_JSON if it has none. NaN and infinities are not JSON."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return NOT_JSON
    # A limit of our own: Python's depends on how deep the caller's stack is already.
    if text.count("[") + text.count("{") > _MAX_DEPTH and not _is_shallow(value, _MAX_DEPTH):
        return NOT_JSON
    return value


def _is_shallow(value: object, depth: int) -> bool:
    """Returns whether arrays and objects are nested at most `depth` deep."""
    if not isinstance(value, (list, dict)):
        return True
    items = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in items)


def js_value(text: str) -> Json:
    """Reads a JavaScript or Python literal: keys without quotes, single quotes, trailing commas; else NOT_JSON."""
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _JS_TOKEN.match(text, at)
        if match is None:
            return NOT_JSON
        token, at = match[0], match.end()
        if token[0] == "'":
            inner = re.sub(r"\\.|\"", lambda m: {"\\'": "'", '"': '\\"'}.get(m[0], m[0]), token[1:-1], flags=re.DOTALL)
            token = f'"{inner}"'
        elif token[0].isalpha() or token[0] in "_$":
            token = _JS_WORDS.get(token) or f'"{token}"'
        elif token in "}]" and tokens and tokens[-1] == ",":
            tokens.pop()
        if not token.isspace():
            tokens.append(token)
    return json_value("".join(tokens))


def json_text(value: object) -> str:
    """`value` in JSON, readable where UTF-8 allows it: a lone surrogate stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text
