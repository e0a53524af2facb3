"""A chat completion in the shapes of OpenAI's Responses API: one response, or its events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longcat.chat.cut_calls import whole_arguments
from longcat.chat.reader import ChatChunk, ChatOutput
from longcat.chat.tool_text import json_value
from longcat.request.totals import timings
from longcat.server.api.chat_chunks import ChatChunks, log_facts
from longcat.server.api.parts import ADD, BEGIN, CALL, END, REASONING, TEXT, Part, Parts
from longcat.server.api.responses.body import CUSTOM_INPUT, ENCRYPTED_REASONING, ResponsesRequest, encoded
from longcat.server.generation import FEW_TOKENS
from longcat.server.http.errors import ApiError
from longcat.support.json_types import JsonObject

_ADDED = {
    REASONING: "response.reasoning_text.delta",
    TEXT: "response.output_text.delta",
    CALL: "response.function_call_arguments.delta",
}
_PREFIX = {REASONING: "rs", TEXT: "msg", CALL: "fc"}
_FAILED = {"error": "the completion failed", "abort": "the server had to end the completion"}


@dataclass
class ResponsesAnswer:
    """An answer on its way.

    Args:
        keep: called with the response once it has ended.
    """

    chunks: ChatChunks
    request: ResponsesRequest
    id: str
    keep: Callable[[JsonObject], None]
    created: int = field(default_factory=lambda: int(time.time()))
    log: JsonObject = field(default_factory=dict)
    named_events = True

    def __post_init__(self) -> None:
        self._parts = Parts()
        self._custom = self.request.custom_tools()
        self._logprobs: dict[int, list[JsonObject]] = {}  # by index of a text
        self._waiting_logprobs: list[JsonObject] = []  # of tokens whose text has not come yet
        self._new_logprobs: list[JsonObject] = []  # of the text that came last
        self._num_events = 0
        self._place: JsonObject = {}  # of the part that is open, in its events

    async def aclose(self) -> None:
        await self.chunks.aclose()

    async def whole(self) -> JsonObject:
        last = None
        async for last in self.chunks:
            self._take(last)
        assert last is not None and last.output is not None
        num_tokens = len(last.output.outputs[0].token_ids)
        if num_tokens > FEW_TOKENS:
            return await asyncio.to_thread(self._ended, last)
        return self._ended(last)

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """The events of the stream."""
        begun = self._response("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        try:
            async for chunk in self.chunks:
                for step, part, text in self._take(chunk):
                    for event in self._events(step, part, text):
                        yield event
                if chunk.output is not None:
                    response = self._ended(chunk)
                    yield self._event(f"response.{response['status']}", response=response)
        except ApiError as error:
            yield self._event("error", code=error.code, message=error.detail, param=error.param)

    def _take(self, chunk: ChatChunk) -> list[tuple[str, Part, str]]:
        """What a chunk adds. An answer without anything is an empty text."""
        news = self._parts.take(chunk)
        if chunk.logprobs is not None:
            self._take_logprobs(self.chunks.logprobs(chunk.logprobs), news)
        if chunk.finish_reason is not None and not self._parts:
            part = Part(0, TEXT)
            self._parts.append(part)
            news = [(BEGIN, part, ""), (END, part, "")]
        return news

    def _take_logprobs(self, entries: list[JsonObject], news: list[tuple[str, Part, str]]) -> None:
        """Gives entries to the text that comes with their tokens, or after them."""
        self._waiting_logprobs += entries
        for step, part, _ in news:
            if step == ADD and part.kind == TEXT:
                self._new_logprobs, self._waiting_logprobs = self._waiting_logprobs, []
                self._logprobs.setdefault(part.index, []).extend(self._new_logprobs)

    # --- events ----------------------------------------------------------------------------------------------------

    def _event(self, kind: str, **fields: Any) -> JsonObject:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}

    def _events(self, step: str, part: Part, text: str) -> list[JsonObject]:
        if step == ADD:
            return self._added(part, text)
        inner = {"item_id": self._item_id(part), "output_index": part.index}
        inner |= {} if part.kind == CALL else {"content_index": 0}
        if step == BEGIN:
            self._place = inner
            item = self._item(part, "in_progress")
            added = self._event("response.output_item.added", output_index=part.index, item=item)
            if part.kind == CALL:
                return [added]
            return [added, self._event("response.content_part.added", **inner, part=_content(part, "", []))]
        ends = self._ends(part, inner)
        item = self._item(part, _status(part))
        return [*ends, self._event("response.output_item.done", output_index=part.index, item=item)]

    def _added(self, part: Part, text: str) -> list[JsonObject]:
        """The event of most tokens."""
        if part.kind == CALL and part.name in self._custom:
            return []  # a JSON text is read when it is whole
        number = self._num_events
        self._num_events += 1
        event = {"type": _ADDED[part.kind], "sequence_number": number, **self._place, "delta": text}
        if part.kind == TEXT:
            event["logprobs"] = self._new_logprobs
        return [event]

    def _ends(self, part: Part, place: JsonObject) -> list[JsonObject]:
        text = part.text
        if part.kind == CALL:
            if part.name in self._custom:
                given = _custom_input(text)
                return [
                    self._event("response.custom_tool_call_input.delta", **place, delta=given),
                    self._event("response.custom_tool_call_input.done", **place, input=given),
                ]
            return [self._event("response.function_call_arguments.done", **place, name=part.name, arguments=text)]
        if part.kind == TEXT:
            logprobs = self._logprobs.get(part.index, [])
            done = self._event("response.output_text.done", **place, text=text, logprobs=logprobs)
            content = _content(part, text, logprobs)
        else:
            done = self._event("response.reasoning_text.done", **place, text=text)
            content = _content(part, text, [])
        return [done, self._event("response.content_part.done", **place, part=content)]

    # --- shapes ----------------------------------------------------------------------------------------------------

    def _item_id(self, part: Part) -> str:
        return f"{'ctc' if part.kind == CALL and part.name in self._custom else _PREFIX[part.kind]}_{part.id}"

    def _item(self, part: Part, status: str) -> JsonObject:
        """An item of the output; one that is in progress has no content yet."""
        has_begun = status == "in_progress"
        text = "" if has_begun else part.text
        frame: JsonObject = {"id": self._item_id(part), "status": status}
        if part.kind == TEXT:
            content = [] if has_begun else [_content(part, text, self._logprobs.get(part.index, []))]
            return frame | {"type": "message", "role": "assistant", "content": content}
        if part.kind == REASONING:
            hidden = encoded(text) if self.request.includes(ENCRYPTED_REASONING) and not has_begun else None
            content = [] if has_begun else [_content(part, text, [])]
            return frame | {"type": "reasoning", "summary": [], "content": content, "encrypted_content": hidden}
        frame |= {"call_id": f"call_{part.id}", "name": part.name}
        if part.name in self._custom:
            return frame | {"type": "custom_tool_call", "input": "" if has_begun else _custom_input(text)}
        return frame | {"type": "function_call", "arguments": text}

    def _ended(self, chunk: ChatChunk) -> JsonObject:
        output, reason = chunk.output, chunk.finish_reason or "stop"
        assert output is not None
        self.log.update(log_facts([output]))
        status = "failed" if reason in _FAILED else "incomplete" if reason == "length" else "completed"
        items = [self._item(part, _status(part)) for part in self._parts]
        response = self._response(status, items)
        response |= {"usage": _usage(output, self._parts.num_reasoning), "timings": timings(output)}
        response["completed_at"] = int(time.time()) if status == "completed" else None
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "failed":
            why = f": {chunk.error}" if chunk.error else ""
            response["error"] = {"code": "server_error", "message": f"[request] {_FAILED[reason]}{why}."}
        if self.request.store:
            self.keep(response)
        return response

    def _response(self, status: str, output: list[JsonObject]) -> JsonObject:
        body = self.request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "metadata": body.metadata or {},
            "model": self.chunks.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "store": body.store,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}, **(body.text or {})},
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "tools": body.tools or [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _status(part: Part) -> str:
    return "incomplete" if part.is_cut else "completed"


def _content(part: Part, text: str, logprobs: list[JsonObject]) -> JsonObject:
    if part.kind == REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _custom_input(arguments: str) -> str:
    """The text that a custom tool is called with."""
    value = json_value(arguments)
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else whole_arguments(arguments)
    return str(given.get(CUSTOM_INPUT, ""))


def _usage(output: ChatOutput, num_reasoning: int) -> JsonObject:
    prompt = len(output.prompt_token_ids)
    completion = sum(len(answer.token_ids) for answer in output.outputs)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": output.num_cached_tokens},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": num_reasoning},
        "total_tokens": prompt + completion,
    }
