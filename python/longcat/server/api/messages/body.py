"""The bodies of Anthropic's Messages API, and what they say in the words of chat.

A field that changes nothing here (`metadata`, `cache_control`, `service_tier`) is ignored. What asks for a thing that
this server has not (pictures, documents, Anthropic's own tools) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field

from longcat.server.api.protocol import ChatRequest, Count, Objects, SamplingBody, StopTexts, sampling_fields
from longcat.server.http.errors import shown
from longcat.support.json_types import Json, JsonObject

# Claude Code begins its system prompt with a line for billing that differs from request to request. What stands behind
# it would never be found in the prefix cache.
_ATTRIBUTION = re.compile(r"\A\s*x-anthropic-billing-header:[^\n]*\n*")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = ("enabled", "adaptive", "between_tools", "disabled")
_ROLES = ("user", "assistant", "system")


class MessagesPrompt(SamplingBody):
    """What a request says to the model."""

    refused = {
        "mcp_servers": (lambda value: value == [], "tools of your own"),
        "container": (lambda value: False, "tools of your own"),
    }
    heavy: ClassVar[dict[str, Json]] = {
        "messages": [{"role": "user", "content": "-"}],
        **dict.fromkeys(["system", "output_config", "output_format", "chat_template_kwargs"]),
    }

    messages: Objects = Field(min_length=1)
    system: str | Objects | None = Field(None, description="a text, or blocks of text")
    tools: Objects | None = Field(None, description="each with name and input_schema")
    tool_choice: JsonObject | None = Field(
        None, description='{"type": "auto" | "any" | "tool" | "none"}, with "name", "disable_parallel_tool_use"'
    )
    thinking: JsonObject | None = Field(None, description='{"type": "enabled" | "adaptive" | "disabled"}')
    output_config: JsonObject | None = Field(
        None, description='{"format": {"type": "json_schema", "schema": ...}}; "effort" is ignored'
    )
    output_format: JsonObject | None = Field(None, description="older name of output_config.format")
    chat_template_kwargs: JsonObject | None = None

    def as_chat(self) -> ChatRequest:
        """The same request in the words of chat.

        Raises:
            ValueError: a part says nothing that chat can say; names it.
        """
        messages = [*_system(self.system), *_messages(self.messages)]
        if not messages:
            raise ValueError("[request] messages has no text; expected a message of the user.")
        # As Anthropic: an answer goes on where a last message of the assistant ends.
        goes_on = messages[-1]["role"] == "assistant"
        choice, parallel = _choice(self.tool_choice)
        chat = ChatRequest(
            messages=messages,
            tools=[_tool(tool, f"tools[{at}]") for at, tool in enumerate(self.tools)] if self.tools else None,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            response_format=_form(self.output_config, self.output_format),
            chat_template_kwargs=_thinking(self.thinking) | (self.chat_template_kwargs or {}),
            continue_final_message=goes_on,
            add_generation_prompt=not goes_on,
            **self._more(),
        )
        chat._done = self._done
        return chat

    def _more(self) -> dict[str, Any]:
        return {"model": self.model}


class CountTokensRequest(MessagesPrompt):
    """Of /v1/messages/count_tokens."""


class MessagesRequest(MessagesPrompt):
    """Of /v1/messages."""

    max_tokens: Count
    stop_sequences: StopTexts | None = None

    def _more(self) -> dict[str, Any]:
        return {**sampling_fields(self), "max_tokens": self.max_tokens, "stop": self.stop_sequences}


# --- messages ------------------------------------------------------------------------------------------------------


def _system(given: str | list[JsonObject] | None) -> Iterator[JsonObject]:
    text = _ATTRIBUTION.sub("", _joined(given, "system", "\n")) if given else ""
    if text:
        yield {"role": "system", "content": text}


def _messages(given: list[JsonObject]) -> Iterator[JsonObject]:
    for at, message in enumerate(given):
        where = f"messages[{at}]"
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise ValueError(f"[request] {where}.role is {shown(role)}; expected {' or '.join(_ROLES)}.")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif not isinstance(content, list):
            raise ValueError(f"[request] {where}.content is {shown(content)}; expected a text or a list of blocks.")
        elif role == "assistant":
            yield _assistant(content, f"{where}.content")
        elif role == "system":
            yield from _system(content)
        else:
            yield from _user(content, f"{where}.content")


def _user(blocks: list[Json], where: str) -> Iterator[JsonObject]:
    """The results of tools as messages of their own, and the texts between them."""
    texts: list[str] = []
    for at, block in enumerate(blocks):
        if _type(block, f"{where}[{at}]") != "tool_result":
            texts.append(_text(block, f"{where}[{at}]"))
            continue
        if texts:
            yield {"role": "user", "content": "\n".join(texts)}
            texts = []
        content = _joined(block.get("content") or "", f"{where}[{at}].content", "\n")
        if block.get("is_error") is True:
            content = f"Error: {content}"
        yield {"role": "tool", "tool_call_id": str(block.get("tool_use_id", "")), "content": content}
    if texts or not blocks:
        yield {"role": "user", "content": "\n".join(texts)}


def _assistant(blocks: list[Json], where: str) -> JsonObject:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[JsonObject] = []
    for at, block in enumerate(blocks):
        place = f"{where}[{at}]"
        kind = _type(block, place)
        if kind == "tool_use":
            calls.append(_call(block, place))
        elif kind == "thinking":
            thoughts.append(_field(block, "thinking", place))
        elif kind != "redacted_thinking":  # only its maker can read it
            texts.append(_text(block, place))
    message: JsonObject = {"role": "assistant", "content": "".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message | ({"tool_calls": calls} if calls else {})


def _call(block: JsonObject, where: str) -> JsonObject:
    arguments = block.get("input", {})
    if not isinstance(arguments, Mapping):
        raise ValueError(f"[request] {where}.input is {shown(arguments)}; expected an object.")
    function = {"name": _field(block, "name", where), "arguments": arguments}
    return {"id": str(block.get("id", "")), "type": "function", "function": function}


def _joined(given: str | list[Json], where: str, between: str) -> str:
    """A text, or the texts of a list of blocks."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise ValueError(f"[request] {where} is {shown(given)}; expected a text or a list of text blocks.")
    return between.join(_text(block, f"{where}[{at}]") for at, block in enumerate(given))


def _text(block: Json, where: str) -> str:
    kind = _type(block, where)
    if kind != "text":
        raise ValueError(f"[request] {where} is of type {shown(kind)}; expected text: this model reads nothing else.")
    return _field(block, "text", where)


def _type(block: Json, where: str) -> Json:
    if not isinstance(block, Mapping):
        raise ValueError(f'[request] {where} is {shown(block)}; expected a block as {{"type": "text", "text": ...}}.')
    return block.get("type")


def _field(block: Mapping[str, Json], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise ValueError(f"[request] {where}.{name} is {shown(value)}; expected a text.")
    return value


# --- tools and forms -----------------------------------------------------------------------------------------------


def _tool(tool: JsonObject, where: str) -> JsonObject:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise ValueError(
            f"[request] {where} is of type {shown(kind)}, which only Anthropic's own server can run; "
            "expected a tool with name and input_schema."
        )
    function: JsonObject = {"name": _field(tool, "name", where), "parameters": tool.get("input_schema")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(given: JsonObject | None) -> tuple[str | JsonObject | None, bool]:
    """The choice in the words of chat, and whether several calls are allowed."""
    if given is None:
        return None, True
    kind, name = given.get("type"), given.get("name")
    parallel = given.get("disable_parallel_tool_use") is not True
    if kind == "tool" and isinstance(name, str):
        return {"type": "function", "function": {"name": name}}, False
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise ValueError(
            f'[request] tool_choice is {shown(given)}; expected {{"type": "auto" or "any" or "none"}}, '
            'or {"type": "tool", "name": ...}.'
        )
    return _CHOICES[kind], parallel


def _thinking(given: JsonObject | None) -> JsonObject:
    """A variable of the template, which shows the model its earlier reasoning."""
    if given is None:
        return {}
    if given.get("type") not in _THINKING:
        raise ValueError(f"[request] thinking.type is {shown(given.get('type'))}; expected {' or '.join(_THINKING)}.")
    return {"enable_thinking": given["type"] != "disabled"}


def _form(config: JsonObject | None, older: JsonObject | None) -> JsonObject | None:
    form = (config or {}).get("format") or older
    if not form:
        return None
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise ValueError(
            f'[request] output_config.format is {shown(form)}; expected {{"type": "json_schema", "schema": ...}}.'
        )
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.get("schema")}}
