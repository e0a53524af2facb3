"""An answer's text -> a chat message: reasoning, content and tool calls. `tool_stream.py` does it as the text arrives.

The algorithm is that of GLM-4.6's published helper with LongCat's tags. What models emit besides is accepted:

* a `functions.` prefix of the name, unless a declared tool carries it;
* `<longcat_tool_call>{"name": ..., "arguments": {...}}`: a call that starts with a brace is JSON, or it is no call;
* `<longcat_tool_call>name({key: value})`, a JSON or JavaScript object in parentheses;
* `<longcat_arg_key>{"key": value}`, one JSON object in place of all pairs;
* no `</longcat_tool_call>` at the end of the text, if nothing else is missing: the last pair (or the JSON) is complete,
  only white space follows, and every argument that the declared tool requires is there. All other calls without their
  end tag were cut off and are dropped, because running half a call is worse than running none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

THINK, THINK_END = "<longcat_think>", "</longcat_think>"
CALL, CALL_END = "<longcat_tool_call>", "</longcat_tool_call>"
KEY, KEY_END = "<longcat_arg_key>", "</longcat_arg_key>"
VALUE, VALUE_END = "<longcat_arg_value>", "</longcat_arg_value>"

_KEY_TO_VALUE = re.compile(rf"{KEY_END}\s*{VALUE}")
_NAME = re.compile(r"[^\n<]*")
_FUNCTION_CALL = re.compile(r"([^\s<({]+)\s*\((.*)\)", re.DOTALL)
_JS_TOKEN = re.compile(
    r"""\s+|[{}\[\]:,]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[A-Za-z_$][\w$]*|-?[\d.][\w.+-]*""", re.DOTALL
)
_JS_WORDS = {"true": "true", "false": "false", "null": "null", "undefined": "null",
             "True": "true", "False": "false", "None": "null"}  # fmt: skip


def parse_model_response(response: str, tools: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The chat message that an answer's text stands for.

    Args:
        response: the decoded answer, special tokens skipped.
        tools: the tools that were declared, as {"type": "function", "function": {...}} or flat. An argument whose
            schema type is "string" is kept as text; every other one is read as JSON and stays text when it is none.
    Returns:
        {"role": "assistant"} and, when not empty, "reasoning_content", "content" (both stripped) and "tool_calls":
        [{"type": "function", "function": {"name": str, "arguments": dict}}]. Text after the first call is dropped.
    """
    schemas = Schemas(tools)
    reasoning, text = _split_reasoning(response.strip())
    content, tag, text = text.partition(CALL)
    calls = []
    while tag:
        body, end, rest = text.partition(CALL_END)
        call = parse_call(body, schemas, closed=bool(end))
        if call is not None:
            calls.append(call)
        _, tag, text = rest.partition(CALL)
    return build_message(reasoning, content.strip(), calls)


def _split_reasoning(text: str) -> tuple[str, str]:
    """Reasoning and the rest of a stripped text; a think block without its end tag takes all."""
    if not text.startswith(THINK):
        return "", text
    text = text[len(THINK) :]
    end = text.rfind(THINK_END)
    if end < 0:
        return text.strip(), ""
    return text[:end].strip(), text[end + len(THINK_END) :]


def build_message(reasoning: str, content: str, calls: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The message of these parts, calls as (name, arguments); empty parts are left out."""
    message: dict[str, Any] = {"role": "assistant"}
    if reasoning:
        message["reasoning_content"] = reasoning
    if content:
        message["content"] = content
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return message


class Schemas:
    """What the declared tools say about names and arguments. Tools of other shapes count as not declared."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None):
        self._parameters: dict[str, Mapping[str, Any]] = {}
        for tool in tools or ():
            function = tool.get("function") if isinstance(tool, Mapping) else None
            function = function if isinstance(function, Mapping) else tool
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                parameters = function.get("parameters")
                self._parameters[function["name"]] = parameters if isinstance(parameters, Mapping) else {}

    def name(self, text: str) -> str:
        """A tool's name as declared: stripped, and without `functions.`."""
        name = text.strip()
        return name if name in self._parameters else name.removeprefix("functions.").strip()

    def type_of(self, name: str, key: str) -> Any:
        """The schema type of an argument; None when the tool or the key is unknown."""
        properties = self._parameters.get(name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, Mapping) else None
        return schema.get("type") if isinstance(schema, Mapping) else None

    def is_complete(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether all required arguments are there; True for unknown tools."""
        required = self._parameters.get(name, {}).get("required")
        required = required if isinstance(required, (list, tuple)) else ()
        return all(key in arguments for key in required if isinstance(key, str))


def parse_call(body: str, schemas: Schemas, closed: bool) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of the call with this text between its tags, None if it is none.

    Args:
        closed: False when the text ended before the end tag; then only a call that lacks nothing else counts.
    """
    if body.lstrip().startswith("{"):
        call = _parse_json_call(body, schemas)
    else:
        call = _parse_function_call(body, schemas) or _parse_tagged_call(body, schemas, closed)
    if call is None or (not closed and not schemas.is_complete(*call)):
        return None
    return call


def _parse_json_call(body: str, schemas: Schemas) -> tuple[str, dict[str, Any]] | None:
    call = _json_value(body)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not schemas.name(call["name"]):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json_value(arguments)
    return (schemas.name(call["name"]), arguments) if isinstance(arguments, dict) else None


def _parse_function_call(body: str, schemas: Schemas) -> tuple[str, dict[str, Any]] | None:
    match = _FUNCTION_CALL.fullmatch(body.strip().removesuffix(";").rstrip())
    if match is None or not schemas.name(match[1]):
        return None
    arguments = _json_value(_json_of_js(match[2].strip() or "{}"))
    return (schemas.name(match[1]), arguments) if isinstance(arguments, dict) else None


def _parse_tagged_call(body: str, schemas: Schemas, closed: bool) -> tuple[str, dict[str, Any]] | None:
    head = _NAME.match(body)
    assert head is not None  # matches the empty text
    name = schemas.name(head[0])
    if not name:
        return None
    arguments: dict[str, Any] = {}
    end = head.end()
    well_formed = True
    for start, stop, key, value in _pairs(body, end):
        arguments[key] = value_of(value, schemas.type_of(name, key))
        well_formed = well_formed and not body[end:start].strip()
        end = stop
    if end == head.end():
        return _parse_json_after_key(name, body[end:], closed)
    return (name, arguments) if closed or (well_formed and not body[end:].strip()) else None


def _pairs(body: str, at: int) -> Iterator[tuple[int, int, str, str]]:
    """Start, end, key and raw value of the complete pairs from `at` on. A key ends where a value follows at once."""
    while (start := body.find(KEY, at)) >= 0:
        middle = _KEY_TO_VALUE.search(body, start + len(KEY))
        end = body.find(VALUE_END, middle.end()) if middle else -1
        if middle is None or end < 0:
            return
        at = end + len(VALUE_END)
        yield start, at, body[start + len(KEY) : middle.start()].strip(), body[middle.end() : end]


def _parse_json_after_key(name: str, body: str, closed: bool) -> tuple[str, dict[str, Any]] | None:
    """A call without pairs: all arguments as one JSON object after the key tag, or none at all."""
    _, tag, text = body.partition(KEY)
    text = text.strip()
    if tag and text.startswith("{"):
        text, _, rest = text.partition(KEY_END)
        arguments = _json_value(text)
        if isinstance(arguments, dict) and (closed or not rest.strip()):
            return name, arguments
    return (name, {}) if closed else None


def value_of(text: str, schema_type: Any) -> Any:
    """An argument's value: text for a string, else what the text says in JSON, else the text."""
    text = text.strip()
    if schema_type == "string":
        return text
    value = _json_value(text)
    return text if value is _NOT_JSON else value


_NOT_JSON = object()
_MAX_DEPTH = 100


def _json_value(text: str) -> Any:
    """`text` read as JSON, `_NOT_JSON` if it is none. NaN and infinities are none: no JSON text stands for them."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return _NOT_JSON
    # A limit of our own: Python's depends on how deep the caller's stack is already.
    if text.count("[") + text.count("{") > _MAX_DEPTH and not _is_shallow(value, _MAX_DEPTH):
        return _NOT_JSON
    return value


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether arrays and objects are nested at most `depth` deep."""
    if not isinstance(value, (list, dict)):
        return True
    items = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in items)


def _json_of_js(text: str) -> str:
    """A JavaScript (or Python) literal in JSON: keys quoted, quotes doubled, trailing commas gone."""
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _JS_TOKEN.match(text, at)
        if match is None:
            return ""
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
    return "".join(tokens)


def json_text(value: Any) -> str:
    """`value` in JSON, readable where UTF-8 allows it: a lone surrogate stays escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return text
