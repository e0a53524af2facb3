"""Chunks of a chat completion, as /v1/chat/completions, /v1/messages and /v1/responses share them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from longcat.chat.reader import ChatChunk, ChatReader
from longcat.request.outputs import Logprob, RequestOutput
from longcat.server.api.protocol import ChatRequest, GenerationBody
from longcat.server.generation import Generation, Service
from longcat.server.http.errors import ApiError
from longcat.server.texts import Texts
from longcat.support.json_types import JsonObject


@dataclass
class ChatChunks:
    """The chunks of one queued request. Closing them ends the request.

    Args:
        body: the request, as chat states it.
        model: the name to answer with.
        generation: the engine's chunks.
        reader: parses reasoning and calls.
    """

    service: Service
    body: ChatRequest
    model: str
    num_prompt_tokens: int
    generation: Generation
    reader: ChatReader

    def __aiter__(self) -> ChatChunks:
        return self

    async def __anext__(self) -> ChatChunk:
        return self.reader.read(await anext(self.generation))

    async def aclose(self) -> None:
        await self.generation.aclose()

    def logprobs(self, entries: Sequence[dict[int, Logprob]]) -> list[JsonObject]:
        """OpenAI's form of the log-probabilities of tokens, with as many likely tokens as the request asks for."""
        return [self._with_likely_ones(entry) for entry in entries]

    def _with_likely_ones(self, entry: dict[int, Logprob]) -> JsonObject:
        count = self.body.top_logprobs or 0
        [chosen, *_] = entry
        top = sorted(entry.items(), key=lambda item: item[1].rank)
        listed = [self._logprob(id, one) for id, one in top if one.rank <= count][:count]
        return {**self._logprob(chosen, entry[chosen]), "top_logprobs": listed}

    def _logprob(self, token_id: int, one: Logprob) -> JsonObject:
        raw = self.service.engine.tokenizer.token_bytes(token_id)
        return {"token": one.decoded_token or "", **_at_least(one), "bytes": list(raw)}


def prompt_logprobs(texts: Texts, body: GenerationBody) -> int | None:
    """Returns the number of likely tokens to report for each position of the prompt.

    Raises:
        ApiError: 400, more than the server allows, or in a stream.
    """
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(
            400, "[request] prompt_logprobs is given with stream; expected one of them.", param="prompt_logprobs"
        )
    return texts.logprobs(body.prompt_logprobs)


def prompt_entries(output: RequestOutput) -> list[dict[int, JsonObject] | None]:
    """Returns a prompt's log-probabilities in vLLM's form: by token id at each position, None at the first."""
    return [
        None if entry is None else {id: dataclasses.asdict(one) | _at_least(one) for id, one in entry.items()}
        for entry in output.prompt_logprobs or ()
    ]


def _at_least(one: Logprob) -> dict[str, float]:
    """Replaces minus infinity, which JSON lacks."""
    return {"logprob": max(one.logprob, -9999.0)}


def log_facts(outputs: Sequence[RequestOutput]) -> JsonObject:
    """Returns the facts of ended completions for the access log."""
    answers = [answer for output in outputs for answer in output.outputs]
    return {
        "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
        "completion_tokens": sum(len(answer.token_ids) for answer in answers),
        "finish_reason": [answer.finish_reason for answer in answers][:8],
    }
