"""Reads tool calls in other forms than the documented one, as models write them between the tags of a call.

* JSON: {"name": ..., "arguments": {...}} under several keys, nested, in a list, or in a code fence;
* name({key: value}) and name(key=value), in JavaScript or Python;
* name and a JSON object after it;
* `<arg_key>` and `<arg_value>` without their prefix, and `<function=name><parameter=key>`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

from longcat.chat.tool_schema import ToolSchemas
from longcat.chat.tool_text import KEY, KEY_END, NOT_JSON, VALUE, VALUE_END, js_value, json_value
from longcat.support.json_types import Json, JsonObject

Call = tuple[str, JsonObject]

_NAMES = ("name", "function", "tool", "tool_name", "function_name", "action", "recipient_name")
_ARGUMENTS = ("arguments", "parameters", "args", "params", "input", "tool_input", "tool_args", "action_input", "kwargs")
_FRAMES = ("tool_call", "function_call", "function", "tool_calls", "tool")
_BESIDE = ("type", "id", "index", "thought")
_FENCE = re.compile(r"```[a-z]*\n?(.*?)\n?```", re.DOTALL)
_FUNCTION_CALL = re.compile(r"([^\s<({]+)\s*\((.*)\)", re.DOTALL)
_FUNCTION_TAG = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER_TAG = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_SHORT_TAG = re.compile(r"<(/?)(arg_key|arg_value)>")
_MAX_PYTHON = 20_000  # characters


def read_calls(body: str, schemas: ToolSchemas) -> list[Call]:
    """Returns the calls of a body in JSON or with parentheses; none for other bodies or without a required argument."""
    text = body.strip()
    fence = _FENCE.fullmatch(text)
    text = fence[1].strip() if fence else text
    calls = _json_calls(json_value(text), schemas) if text[:1] in ("{", "[") else _function_call(text, schemas)
    return calls if all(schemas[name].is_complete(arguments) for name, arguments in calls) else []


def read_object(text: str) -> JsonObject | None:
    """Returns the arguments of a call that are written as one JSON object."""
    fence = _FENCE.fullmatch(text.strip())
    value = json_value((fence[1] if fence else text).strip())
    return value if isinstance(value, dict) else None


def with_our_tags(body: str) -> str | None:
    """Rewrites a body with other models' tags in our tags; None if it has none."""
    if function := _FUNCTION_TAG.search(body):
        pairs = _PARAMETER_TAG.findall(function[2])
        return f"{function[1]}\n" + "".join(f"{KEY}{key}{KEY_END}{VALUE}{value}{VALUE_END}" for key, value in pairs)
    replaced = _SHORT_TAG.sub(r"<\1longcat_\2>", body)
    return replaced if replaced != body else None


def _json_calls(value: object, schemas: ToolSchemas, depth: int = 4) -> list[Call]:
    if isinstance(value, list):
        found = [_json_calls(one, schemas, depth - 1) for one in value] if depth else []
        return [call for calls in found for call in calls] if all(found) else []
    if not isinstance(value, dict) or not depth:
        return []
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), None)
    if name is None:
        for frame in _FRAMES:
            if isinstance(value.get(frame), (dict, list)):
                return _json_calls(value[frame], schemas, depth - 1)
        if len(value) == 1:
            [(name, arguments)] = value.items()
            if schemas.name(name) in schemas and isinstance(arguments, dict):
                return [(schemas.name(name), arguments)]
        return []
    name = schemas.name(name)
    if not schemas.may_be_name(name):
        return []
    given = next((value[key] for key in _ARGUMENTS if key in value), NOT_JSON)
    if given is NOT_JSON:
        given = {key: one for key, one in value.items() if key not in _NAMES and key not in _BESIDE}
    if isinstance(given, str):
        given = json_value(given) if given.strip() else {}
    given = {} if given is None else given
    return [(name, given)] if isinstance(given, dict) else []


def _function_call(text: str, schemas: ToolSchemas) -> list[Call]:
    match = _FUNCTION_CALL.fullmatch(text.removesuffix(";").rstrip())
    if match is None or not schemas.name(match[1]):
        return []
    arguments = js_value(match[2].strip() or "{}")
    if not isinstance(arguments, dict):
        arguments = _keywords(match[2])
    return [(schemas.name(match[1]), arguments)] if isinstance(arguments, dict) else []


def _keywords(text: str) -> JsonObject | None:
    """Returns the arguments of a call in Python's syntax, all by name."""
    if len(text) > _MAX_PYTHON or "=" not in text:
        return None
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not call.keywords:
            return None
        return dict(_literals(call.keywords))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _literals(keywords: Iterable[ast.keyword]) -> Iterable[tuple[str, Json]]:
    for keyword in keywords:
        if keyword.arg is None:
            raise ValueError("a call with **")
        if isinstance(keyword.value, ast.Name):
            yield keyword.arg, {"true": True, "false": False, "null": None}[keyword.value.id]
        else:
            value = ast.literal_eval(keyword.value)
            if not isinstance(value, (str, int, float, bool, list, dict, type(None))):
                raise ValueError("a value that JSON has not")
            yield keyword.arg, value
