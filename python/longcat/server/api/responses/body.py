"""The body of OpenAI's Responses API, and what it says in the words of chat.

Tools that only OpenAI's own server can run (web search, files, code) are left out and named as ignored: agents declare
them unasked. A custom tool, which takes free text, is a function of one text here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from longcat.chat.tool_text import json_text
from longcat.server.api.protocol import ChatRequest, Count, Objects, SamplingBody, sampling_fields
from longcat.server.http.body import MAX_SHOWN_CHARS, MAX_SHOWN_FIELDS
from longcat.server.http.errors import shown
from longcat.support.json_types import Json, JsonObject

ENCRYPTED_REASONING = "reasoning.encrypted_content"  # values of `include`
LOGPROBS = "message.output_text.logprobs"
CUSTOM_INPUT = "input"  # the argument that stands for a custom tool's text
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")
_NO_EFFORT = ("none", "minimal")
_ENCODED = "base64:"


class ResponsesRequest(SamplingBody):
    """Of /v1/responses."""

    refused = {
        "background": (lambda value: value is False, "false: answers come at once or as a stream"),
        "conversation": (lambda value: False, "previous_response_id"),
        "prompt": (lambda value: False, "input and instructions"),
    }
    heavy: ClassVar[dict[str, Json]] = {"input": "-"}  # not chat_template_kwargs: the server may render

    input: str | Objects | None = Field(None, description="a text, or a list of items")
    instructions: str | None = Field(None, description="a system message; not kept for later responses")
    max_output_tokens: Count | None = Field(None, description="default: what the context leaves")
    tools: Objects | None = Field(None, description="of the types function and custom")
    tool_choice: str | JsonObject | None = Field(
        None, description="auto, none, required, a function, or a list of allowed tools"
    )
    parallel_tool_calls: bool = True
    text: JsonObject | None = Field(
        None, description='{"format": {"type": "text" | "json_object"} or {"type": "json_schema", "schema": ...}}'
    )
    reasoning: JsonObject | None = Field(None, description='{"effort": ...}: any but none and minimal lets it think')
    include: list[str] | None = Field(None, max_length=16, description=f"{ENCRYPTED_REASONING}, {LOGPROBS}")
    top_logprobs: int | None = Field(None, ge=0)
    store: bool = Field(True, description="keep the response for previous_response_id")
    previous_response_id: str | None = Field(None, description="of a response of the same API key")
    metadata: JsonObject | None = Field(None, description="returned as it is")
    chat_template_kwargs: JsonObject | None = None

    def includes(self, what: str) -> bool:
        return what in (self.include or ())

    def ignored(self) -> list[str]:
        """Unknown fields, and tools that cannot run here."""
        types = dict.fromkeys(str(tool.get("type"))[:MAX_SHOWN_CHARS] for tool in self.tools or () if not _runs(tool))
        return [*(f"tools.{kind}" for kind in types), *super().ignored()][:MAX_SHOWN_FIELDS]

    def hint(self, name: str) -> str:
        return "only OpenAI's server can run it" if name.startswith("tools.") else super().hint(name)

    def items(self) -> list[JsonObject]:
        """The input as a list of items."""
        if isinstance(self.input, str):
            text = {"type": "input_text", "text": self.input}
            return [{"type": "message", "role": "user", "content": [text]}]
        return list(self.input or ())

    def custom_tools(self) -> frozenset[str]:
        """Names of tools that take free text."""
        return frozenset(str(tool.get("name")) for tool in self.tools or () if tool.get("type") == "custom")

    def as_chat(self, items: Sequence[JsonObject] | None = None) -> ChatRequest:
        """The same request in the words of chat.

        Args:
            items: the whole conversation, where earlier responses are part of it; default: the input.
        Raises:
            ValueError: a part says nothing that chat can say; names it.
        """
        start = [{"role": "system", "content": self.instructions}] if self.instructions else []
        messages = [*start, *_messages(self.items() if items is None else items)]
        if not messages:
            raise ValueError("[request] input is empty; expected a text, or a list with a message.")
        tools = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(self.tools or ()) if _runs(tool)]
        chat = ChatRequest(
            **sampling_fields(self),
            messages=messages,
            max_tokens=self.max_output_tokens,
            tools=tools or None,
            tool_choice=_choice(self.tool_choice) if tools or self.tool_choice == "required" else None,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=_form(self.text),
            logprobs=self.includes(LOGPROBS),
            top_logprobs=self.top_logprobs,
            chat_template_kwargs=_thinking(self.reasoning) | (self.chat_template_kwargs or {}),
        )
        chat._done = self._done
        return chat


# --- items ---------------------------------------------------------------------------------------------------------


def _messages(items: Iterable[Mapping[str, Json]]) -> Iterator[JsonObject]:
    """Messages of chat: reasoning, a text and the calls behind it are one message of the assistant."""
    turn: JsonObject = {}
    for at, item in enumerate(items):
        where = f"input[{at}]"
        kind = item.get("type", "message")
        if kind == "reasoning":
            if text := _reasoning(item, where):
                if "content" in turn or "tool_calls" in turn:
                    yield _assistant(turn)
                    turn = {}
                turn["reasoning_content"] = turn.get("reasoning_content", "") + text
        elif kind in ("function_call", "custom_tool_call"):
            turn.setdefault("tool_calls", []).append(_call(item, where))
        elif kind == "message" and item.get("role") == "assistant":
            if "content" in turn or "tool_calls" in turn:
                yield _assistant(turn)
                turn = {}
            turn["content"] = _content(item.get("content"), f"{where}.content")
        else:
            if turn:
                yield _assistant(turn)
                turn = {}
            yield _other(item, kind, where)
    if turn:
        yield _assistant(turn)


def _assistant(turn: JsonObject) -> JsonObject:
    return {"role": "assistant", "content": "", **turn}


def _other(item: Mapping[str, Json], kind: Json, where: str) -> JsonObject:
    """A message that is not the assistant's."""
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise ValueError(f"[request] {where}.role is {shown(role)}; expected {' or '.join(_ROLES)}.")
        return {"role": _ROLES[role], "content": _content(item.get("content"), f"{where}.content")}
    if kind in ("function_call_output", "custom_tool_call_output"):
        content = _content(item.get("output"), f"{where}.output")
        return {"role": "tool", "tool_call_id": str(item.get("call_id", "")), "content": content}
    raise ValueError(
        f"[request] {where} is of type {shown(kind)}; expected message, function_call, function_call_output, "
        "custom_tool_call, custom_tool_call_output, reasoning or item_reference."
    )


def _content(content: Json, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"[request] {where} is {shown(content)}; expected a text or a list of text parts.")
    texts = []
    for at, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in (*_TEXTS, "refusal"):
            raise ValueError(
                f"[request] {where}[{at}] is of type {shown(kind)}; expected input_text or output_text: "
                "this model reads nothing else."
            )
        if not isinstance(text, str):
            raise ValueError(f"[request] {where}[{at}].text is {shown(text)}; expected a text.")
        texts.append(text)
    return "".join(texts)


def _call(item: Mapping[str, Json], where: str) -> JsonObject:
    name = item.get("name")
    is_custom = item.get("type") == "custom_tool_call"
    given = item.get("input" if is_custom else "arguments")
    if not isinstance(name, str) or not isinstance(given, str):
        field = "input" if is_custom else "arguments"
        raise ValueError(f"[request] {where} is a call without the texts name and {field}; expected both.")
    arguments = json_text({CUSTOM_INPUT: given}) if is_custom else given
    return {"id": str(item.get("call_id", "")), "type": "function", "function": {"name": name, "arguments": arguments}}


def _reasoning(item: Mapping[str, Json], where: str) -> str:
    """The text of a reasoning item; "" for what another server encrypted."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise ValueError(f"[request] {where}.content is {shown(parts)}; expected a list of parts.")
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    text = "".join(text for text in texts if isinstance(text, str))
    return text or decoded(item.get("encrypted_content"))


def encoded(text: str) -> str:
    """Reasoning as a client keeps it in place of the text. It is no secret: only out of sight."""
    return _ENCODED + base64.b64encode(text.encode(errors="replace")).decode()


def decoded(given: Json) -> str:
    """The text that `encoded` was given, "" where something else was."""
    if not isinstance(given, str) or not given.startswith(_ENCODED):
        return ""
    try:
        return base64.b64decode(given.removeprefix(_ENCODED), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


# --- tools and forms -----------------------------------------------------------------------------------------------


def _runs(tool: JsonObject) -> bool:
    return tool.get("type") in ("function", "custom")


def _tool(tool: JsonObject, where: str) -> JsonObject:
    function = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
    if not isinstance(function.get("name"), str):
        raise ValueError(f"[request] {where}.name is {shown(function.get('name'))}; expected a text.")
    if tool["type"] == "custom":
        text = {"type": "object", "properties": {CUSTOM_INPUT: {"type": "string"}}, "required": [CUSTOM_INPUT]}
        function["parameters"] = text
    return {"type": "function", "function": function}


def _choice(given: str | JsonObject | None) -> str | JsonObject | None:
    if not isinstance(given, Mapping):
        return given
    kind = given.get("type")
    if kind in ("function", "custom"):
        return {"type": "function", "function": {"name": given.get("name")}}
    if kind == "allowed_tools":
        allowed: dict[str, Any] = {"mode": given.get("mode"), "tools": given.get("tools")}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    raise ValueError(
        f'[request] tool_choice is {shown(given)}; expected "auto", "none", "required", '
        '{"type": "function", "name": ...} or {"type": "allowed_tools", "mode": ..., "tools": [...]}.'
    )


def _form(text: JsonObject | None) -> JsonObject | None:
    form = (text or {}).get("format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind in ("text", "json_object"):
        return {"type": kind}
    if kind != "json_schema":
        raise ValueError(
            f'[request] text.format is {shown(form)}; expected {{"type": "text" or "json_object"}} or '
            '{"type": "json_schema", "name": ..., "schema": {...}}.'
        )
    return {"type": "json_schema", "json_schema": {"name": form.get("name"), "schema": form.get("schema")}}


def _thinking(reasoning: JsonObject | None) -> JsonObject:
    """A variable of the template, which shows the model its earlier reasoning."""
    effort = (reasoning or {}).get("effort")
    return {} if effort is None else {"enable_thinking": effort not in _NO_EFFORT}
