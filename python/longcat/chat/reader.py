"""Reads a stream of chunks as chat: parses reasoning and tool calls, and makes a message of each completion."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longcat.chat.tool_stream import Delta, StreamingResponseParser, ToolCallDelta
from longcat.chat.tool_text import THINK
from longcat.request.outputs import Logprob, RequestOutput, ShortRepr, StreamChunk
from longcat.request.sampling_params import SamplingParams
from longcat.support.json_types import JsonObject


@dataclass(repr=False)
class ChatOutput(RequestOutput):
    """A RequestOutput with a message for each completion: {"role", "content", "reasoning_content", "tool_calls"}.

    A completion that calls tools has finish_reason "tool_calls". With another reason its last call may be unfinished:
    the arguments are then a text, JSON without its end, in place of an object. `str()` is the first message's content.
    """

    messages: list[JsonObject] = field(default_factory=list)

    @property
    def message(self) -> JsonObject:
        return self.messages[0]

    def __str__(self) -> str:
        content: str = self.message.get("content", "")
        return content


@dataclass(repr=False)
class ChatChunk(ShortRepr):
    """A part of one completion. `delta` is content; it may be empty while the completion reasons or calls a tool."""

    delta: str = ""
    reasoning_delta: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_index: int = 0
    index: int = 0
    finish_reason: str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    output: ChatOutput | None = None  # the whole result, with the last chunk of the last answer
    request_id: int | str = -1  # for Engine.abort
    stop_reason: int | str | None = (
        None  # with the last chunk of an answer: what ended it, unless that was the end token
    )
    error: str | None = None  # with it: why, when finish_reason is "error"

    def __str__(self) -> str:
        return self.delta


def force_calls(
    params: SamplingParams, tools: Sequence[Mapping[str, Any]] | None, tool_choice: Any, parallel: bool = True
) -> tuple[SamplingParams, str | None]:
    """Returns parameters that force tool calls where `tool_choice` says so, and the choice for the template.

    A completion that is held to another form may call a tool in its place, or must if the choice says so.

    Raises:
        ValueError: there is no such tool, or the choice is none.
    """
    form = params.structured_outputs
    is_forced = tool_choice not in (None, "auto", "none")
    if not is_forced and (form is None or not tools):
        return params, tool_choice
    from longcat.chat.tool_grammar import calls_or_form
    from longcat.request.structured import StructuredOutputs

    if is_forced and params.token_mask is not None:
        raise ValueError("[tools] found a token_mask and a tool_choice that forces a call; expected one of them.")
    given = form if isinstance(form, StructuredOutputs) else None
    if form is not given and not is_forced:
        return params, tool_choice  # compiled already
    form = calls_or_form(tools, tool_choice, parallel, given)
    return dataclasses.replace(params, structured_outputs=form), "auto" if is_forced else tool_choice


class PlainText:
    """Stands in for the parser where no tools are declared: all text is content."""

    def __init__(self) -> None:
        self.message: JsonObject = {"role": "assistant", "content": ""}

    def push(self, text: str) -> list[Delta]:
        self.message["content"] += text
        return [Delta(content=text)]

    def finish(self, reason: str | None = None) -> list[Delta]:
        return []


def ends_in_think(prompt: str) -> bool:
    """Returns whether a prompt ends inside a think block, so that the completion begins with reasoning."""
    return prompt.rstrip().endswith(THINK)


class ChatReader:
    """Makes chat chunks of token chunks. It parses reasoning and tool calls as they arrive.

    `may_call` is whether a completion can be a call.

    Args:
        is_forced: a grammar holds the completions to calls whose arguments fit.
        starts_thinking: of each prompt, whether it ends inside a think block (`ends_in_think`). False where a grammar
            holds the completion to a form, which has no think block. Default: no prompt does.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, object]] | None,
        tool_choice: str | None = None,
        is_forced: bool = False,
        starts_thinking: Sequence[bool] = (),
    ):
        self._tools = tools
        self._is_forced = is_forced
        self._starts_thinking = starts_thinking
        self.may_call = bool(tools) and tool_choice != "none"
        self._parsers: dict[tuple[int, int], StreamingResponseParser | PlainText] = {}

    def read(self, news: StreamChunk) -> ChatChunk:
        key = (news.prompt_index, news.index)
        if key not in self._parsers:
            self._parsers[key] = self._parser(news.prompt_index)
        parser = self._parsers[key]
        deltas = parser.push(news.delta)
        reason = news.finish_reason
        if reason is not None:
            deltas = [*deltas, *parser.finish(reason)]
            reason = self._reason(reason, parser.message)
        chunk = ChatChunk(
            "".join(d.content for d in deltas),
            "".join(d.reasoning_content for d in deltas),
            [d.tool_call for d in deltas if d.tool_call is not None],
            news.token_ids,
            news.prompt_index,
            news.index,
            reason,
            news.logprobs,
            request_id=news.request_id,
            stop_reason=news.stop_reason,
            error=news.error,
        )
        if news.output is not None:
            chunk.output = self._whole(news.output, news.prompt_index)
        return chunk

    def _parser(self, prompt_index: int) -> StreamingResponseParser | PlainText:
        if prompt_index < len(self._starts_thinking) and self._starts_thinking[prompt_index]:
            # The first end tag counts: otherwise all content would be held back until the end.
            return StreamingResponseParser(
                self._tools, hold_after_think=False, starts_thinking=True, reads_calls=self.may_call
            )
        return StreamingResponseParser(self._tools, fits=self._is_forced) if self.may_call else PlainText()

    def _whole(self, output: RequestOutput, prompt_index: int) -> ChatOutput:
        fields = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
        messages = [self._message((prompt_index, answer.index)) for answer in output.outputs]
        for answer, message in zip(output.outputs, messages, strict=True):
            answer.finish_reason = self._reason(answer.finish_reason, message)
        return ChatOutput(**fields, messages=messages)

    @staticmethod
    def _reason(reason: str | None, message: Mapping[str, Any]) -> str | None:
        """Returns why a completion ended. "tool_calls" means that all its calls are whole."""
        calls = message.get("tool_calls", ())
        is_whole = all(not isinstance(call["function"]["arguments"], str) for call in calls)
        return "tool_calls" if reason == "stop" and calls and is_whole else reason

    def _message(self, key: tuple[int, int]) -> JsonObject:
        """Returns the parsed message. It always has a content, as OpenAI's clients expect."""
        message = self._parsers[key].message
        return {"role": message["role"], "content": message.get("content", ""), **message}
