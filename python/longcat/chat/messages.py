"""Converts messages and tools from the forms that callers use to the one form that chat templates expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longcat.chat.cut_calls import with_calls
from longcat.chat.tool_text import json_value
from longcat.support.json_types import Json, JsonObject

_MAX_NESTING = 64  # of lists and objects
_MAX_INT_BITS = 4096
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# Fields of a message that are read here. Those that `tools` and `tool_calls` replaced are in old histories still.
_READ = ("content", "refusal", "tool_calls", "function_call")


def normalize_messages(messages: Sequence[Mapping[str, object]]) -> list[JsonObject]:
    """Returns messages in JSON's types, with contents as text and tool calls as objects.

    Raises:
        ValueError: a message is wrong; says which and what is expected.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(f"messages is a {type(messages).__name__}: expected a list of messages")
    if not messages:
        raise ValueError("messages is empty: expected at least one message")
    return [_message(message, f"message {index}") for index, message in enumerate(messages)]


def normalize_tools(tools: Sequence[Mapping[str, object]] | None) -> list[JsonObject] | None:
    """Returns tools as {"type", "function": {"name", "description", "parameters"}}; None when there are none.

    A tool of another type without a function stays as it is: the template may know it.

    Raises:
        ValueError: a tool is wrong; says which.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValueError(f"tools is a {type(tools).__name__}: expected a list of tools")
    return [_tool(tool, f"tool {index}") for index, tool in enumerate(tools)] or None


def _message(message: object, where: str) -> JsonObject:
    if not isinstance(message, Mapping):
        raise ValueError(f'{where} is a {type(message).__name__}: expected {{"role": ..., "content": ...}}')
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"{where} has role {role!r}: expected one of {', '.join(_ROLES)}")
    given = {name: value for name, value in message.items() if name not in _READ}
    result = _plain_object(given, where)
    result["role"] = _ROLES[role]
    content = message.get("content")
    if role == "assistant" and content is None:
        content = message.get("refusal")
    result["content"] = _content(content, role, where)
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:
        calls = [{"function": message["function_call"]}]
    if calls is not None:
        if role != "assistant" or isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
            raise ValueError(f"{where} has tool_calls: expected a list of calls, of an assistant")
        result["tool_calls"] = [_tool_call(call, f"{where}, tool call {i}") for i, call in enumerate(calls)]
        if any(isinstance(call["function"]["arguments"], str) for call in result["tool_calls"]):
            result["content"] = with_calls(result["content"] or "", result.pop("tool_calls"))
    return result


def _content(content: object, role: str, where: str) -> str | None:
    """Returns a message's text; None only for an assistant's message without text."""
    if content is None and role == "assistant":
        return None
    if isinstance(content, str):
        return str(plain(content, where))
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        found = "is missing" if content is None else f"is a {type(content).__name__}"
        raise ValueError(f"{where}: content {found}: expected a text or a list of text parts")
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" and not (kind == "refusal" and role == "assistant"):
            raise ValueError(f"{where} has a part of type {kind!r}: this model reads text only")
        text = part.get(kind) if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            raise ValueError(f'{where} has a part without text: expected {{"type": "text", "text": ...}}')
        texts.append(plain(text, where))
    return "".join(texts)


def _tool_call(call: Json, where: str) -> JsonObject:
    """Returns a call whose arguments are an object, or a text that is no object, as after `max_tokens`."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f'{where} has no name: expected {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        value = json_value(arguments) if arguments.strip() else {}
        arguments = value if isinstance(value, dict) else arguments
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, (Mapping, str)):
        raise ValueError(f"{where}: arguments are a {type(arguments).__name__}: expected an object, or its JSON text")
    outer = {name: value for name, value in call.items() if name not in ("function", "name", "arguments")}
    return _plain_object({"type": "function"} | outer | {"function": {**function, "arguments": arguments}}, where)


def _tool(tool: object, where: str) -> JsonObject:
    if not isinstance(tool, Mapping):
        raise ValueError(f'{where} is a {type(tool).__name__}: expected {{"type": "function", "function": ...}}')
    kind = tool.get("type", "function")
    function = tool.get("function")
    if function is None:
        if kind != "function":
            return _plain_object(tool, where)
        function = {name: value for name, value in tool.items() if name != "type"}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f'{where} has no name: expected {{"type": "function", "function": {{"name": ..., ...}}}}')
    for name, expected, default in (
        ("description", str, ""),
        ("parameters", Mapping, {"type": "object", "properties": {}}),
    ):
        value = function.get(name)
        if value is not None and not isinstance(value, expected):
            raise ValueError(f"{where}: {name} is a {type(value).__name__}: expected {expected.__name__.lower()}")
        function = {**function, name: default if value is None else value}
    return _plain_object({"type": kind, "function": function}, where)


def _plain_object(value: Mapping[str, object], where: str) -> JsonObject:
    copy: JsonObject = plain(value, where)
    return copy


def plain(value: object, where: str, depth: int = 0) -> Json:
    """Returns a copy of `value` in JSON's types."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{where} has half of a surrogate pair in its text: expected Unicode") from None
        return str(value)
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and value.bit_length() <= _MAX_INT_BITS:
        return int(value)
    if depth >= _MAX_NESTING:
        raise ValueError(f"{where} is nested more than {_MAX_NESTING} deep")
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {plain(name, where): plain(item, where, depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where, depth + 1) for item in value]
    raise ValueError(f"{where} has a {type(value).__name__}: expected what JSON can say")
