"""A chat completion in the shapes of Anthropic's Messages API: one message, or its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from longcat.chat.cut_calls import whole_arguments
from longcat.chat.reader import ChatChunk, ChatOutput
from longcat.request.totals import timings
from longcat.server.api.chat_chunks import ChatChunks, log_facts
from longcat.server.api.parts import ADD, BEGIN, CALL, REASONING, Part, Parts
from longcat.server.generation import FEW_TOKENS
from longcat.server.http.errors import MESSAGES_PATH, ApiError
from longcat.support.json_types import JsonObject

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_SIGNATURE = "unsigned"  # of reasoning; clients send back only what has one


@dataclass
class MessagesAnswer:
    """An answer on its way."""

    chunks: ChatChunks
    id: str
    parts: Parts = field(default_factory=Parts)
    log: JsonObject = field(default_factory=dict)
    named_events = True

    async def aclose(self) -> None:
        await self.chunks.aclose()

    async def whole(self) -> JsonObject:
        last = None
        async for last in self.chunks:
            self.parts.take(last)
        assert last is not None and last.output is not None
        self.log.update(log_facts([last.output]))
        _check_ended(last)
        num_tokens = len(last.output.outputs[0].token_ids)
        content = await asyncio.to_thread(self._content) if num_tokens > FEW_TOKENS else self._content()
        end = {"stop_reason": self._reason(last), "stop_sequence": _stop_sequence(last)}
        return self._message(content, self._usage(last.output)) | end | {"timings": timings(last.output)}

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """The events of the stream."""
        end = {"stop_reason": None, "stop_sequence": None}
        yield {"type": "message_start", "message": self._message([], self._counts(self.chunks.num_prompt_tokens)) | end}
        yield {"type": "ping"}
        try:
            async for chunk in self.chunks:
                for step, part, text in self.parts.take(chunk):
                    for event in _events(step, part, text):
                        yield event
                if chunk.output is not None:
                    self.log.update(log_facts([chunk.output]))
                    _check_ended(chunk)
                    delta = {"stop_reason": self._reason(chunk), "stop_sequence": _stop_sequence(chunk)}
                    usage = self._usage(chunk.output)
                    yield {"type": "message_delta", "delta": delta, "usage": usage, "timings": timings(chunk.output)}
                    yield {"type": "message_stop"}
        except ApiError as error:
            yield error.body(MESSAGES_PATH)

    def _message(self, content: list[JsonObject], usage: JsonObject) -> JsonObject:
        frame = {"id": self.id, "type": "message", "role": "assistant", "model": self.chunks.model}
        return frame | {"content": content, "usage": usage}

    def _content(self) -> list[JsonObject]:
        return [_block(part, part.text) for part in self.parts]

    def _usage(self, output: ChatOutput) -> JsonObject:
        cached, num_tokens = output.num_cached_tokens, sum(len(answer.token_ids) for answer in output.outputs)
        return self._counts(len(output.prompt_token_ids) - cached, cached, num_tokens)

    def _counts(self, prompt: int, cached: int = 0, generated: int = 0) -> JsonObject:
        """Anthropic's count of tokens; `prompt` is without the cached ones."""
        return {
            "input_tokens": prompt,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": generated,
            "output_tokens_details": {"thinking_tokens": self.parts.num_reasoning},
        }

    def _reason(self, chunk: ChatChunk) -> str:
        assert chunk.output is not None
        if _stop_sequence(chunk) is not None:
            return "stop_sequence"
        num_tokens = len(chunk.output.outputs[0].token_ids)
        if chunk.finish_reason == "length" and num_tokens < (self.chunks.body.max_tokens or 0):
            return "model_context_window_exceeded"
        return _REASONS[chunk.finish_reason or "stop"]


def _check_ended(chunk: ChatChunk) -> None:
    """Raises ApiError where an answer has no end that a message could tell of."""
    if chunk.finish_reason == "error":
        raise ApiError(500, f"[request] the completion failed: {chunk.error}.")
    if chunk.finish_reason == "abort":
        raise ApiError(503, "[request] the server had to end the completion. Try again later.", retry_after=1)


def _stop_sequence(chunk: ChatChunk) -> str | None:
    """The text that ended an answer; a call that ended before it counts more."""
    is_text = chunk.finish_reason == "stop" and isinstance(chunk.stop_reason, str)
    return str(chunk.stop_reason) if is_text else None


def _events(step: str, part: Part, text: str) -> list[JsonObject]:
    if step == BEGIN:
        return [{"type": "content_block_start", "index": part.index, "content_block": _block(part, "")}]
    if step == ADD:
        return [_delta(part, *_ADDED[part.kind], text)]
    signature = [_delta(part, "signature_delta", "signature", _SIGNATURE)] if part.kind == REASONING else []
    return [*signature, {"type": "content_block_stop", "index": part.index}]


_ADDED = {
    REASONING: ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    CALL: ("input_json_delta", "partial_json"),
}


def _delta(part: Part, kind: str, name: str, text: str) -> JsonObject:
    return {"type": "content_block_delta", "index": part.index, "delta": {"type": kind, name: text}}


def _block(part: Part, text: str) -> JsonObject:
    """A block of content that is whole, or with "" one that begins."""
    if part.kind == REASONING:
        return {"type": "thinking", "thinking": text, "signature": _SIGNATURE if text else ""}
    if part.kind == CALL:
        return {"type": "tool_use", "id": f"toolu_{part.id}", "name": part.name, "input": whole_arguments(text)}
    return {"type": "text", "text": text}
