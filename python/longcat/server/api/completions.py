"""POST /v1/completions. Special tokens written in the prompt's text are read as special tokens."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from longcat.engine.request_table import RequestGroup
from longcat.request.outputs import CompletionOutput, Logprob, RequestOutput
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import StructuredOutputs
from longcat.request.tokenizer import StreamDecoder
from longcat.request.totals import timings, usage
from longcat.server.api.chat_chunks import log_facts, prompt_entries, prompt_logprobs
from longcat.server.api.protocol import CompletionRequest
from longcat.server.api.shapes import TextCompletion, answers
from longcat.server.generation import FEW_TOKENS, Generation, Service, respond
from longcat.server.http.body import Done
from longcat.server.http.errors import ApiError
from longcat.server.http.intake import JsonRoute
from longcat.server.texts import Texts, answer_form, grammar_of
from longcat.support.json_types import JsonObject

_AT_ONCE = 64  # streams that one turn of the event loop begins, ends, or puts into an answer

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/completions", summary="Continue a text", responses=answers(TextCompletion, stream=True))
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Completes prompts: as one response, or with `stream` as events. `echo` with `logprobs` scores the prompt."""
    return await respond(request, body, start_completion)


@dataclass
class CompletionPlan:
    """A completions request, checked and tokenized; `params` still lack the grammar."""

    model: str
    params: SamplingParams
    done: Done


def plan_completion(texts: Texts, body: CompletionRequest) -> CompletionPlan:
    """Checks and tokenizes.

    Raises:
        ApiError, ValueError, TypeError, longcat.Error: the request is wrong.
    """
    model = texts.model_name(body.model)
    if body.suffix:
        raise ApiError(400, "suffix: the model cannot fill in; leave it out", param="suffix")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens=0 asks for nothing: expected 1 or more, or echo", param="max_tokens")
    if body.echo and body.stream:
        raise ApiError(400, "echo does not go together with stream: expected one of them", param="echo")
    logprobs, of_prompt = texts.logprobs(body.logprobs), prompt_logprobs(texts, body)
    if body.echo and logprobs is not None and of_prompt not in (None, logprobs):
        raise ApiError(
            400,
            f"[request] prompt_logprobs is {of_prompt} beside echo with logprobs {logprobs}; expected the same number.",
            param="prompt_logprobs",
        )
    if body.echo and of_prompt is None:
        of_prompt = logprobs
    params = texts.sampling_params(body, max_tokens=body.max_tokens, logprobs=logprobs, prompt_logprobs=of_prompt)
    if (done := body._done) is None:
        form = answer_form(body)
        params.structured_outputs = None if form is None else StructuredOutputs.of(form)
        done = _tokenized(texts, body)
        done.grammar = grammar_of(params)
    return CompletionPlan(model, params, done)


def _tokenized(texts: Texts, body: CompletionRequest) -> Done:
    """Token ids of all prompts, and their texts (None where ids were given) for `echo`."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not 1 <= len(prompt) <= texts.settings.max_prompts:
        limit = texts.settings.max_prompts
        raise ApiError(400, f"prompt is a list of {len(prompt)}: expected 1 to {limit}", param="prompt")
    most = texts.settings.max_completions
    if len(prompt) > 1 and len(prompt) * body.n > most:
        raise ApiError(
            400,
            f"[request] {len(prompt)} prompts with n={body.n} ask for {len(prompt) * body.n} completions; expected at "
            f"most {most} (half of --max-queued-requests). Send fewer prompts in a request.",
            param="prompt",
        )
    encoded = iter(texts.encode([one for one in prompt if isinstance(one, str)]))
    token_ids = [next(encoded) if isinstance(one, str) else one for one in prompt]
    for one in token_ids:
        texts.check_room(one, "prompt", min(body.max_tokens, 1))
    return Done(token_ids, texts=[one if body.echo and isinstance(one, str) else None for one in prompt])


async def start_completion(service: Service, body: CompletionRequest) -> CompletionAnswer:
    """Plans, compiles and queues all prompts, or none.

    Raises:
        ApiError: the request is wrong, or the server is full.
    """
    plan = await service.planned(body, plan_completion)
    plan.params.structured_outputs = await service.compiled(plan.done.grammar)
    id = f"cmpl-{uuid.uuid4().hex}"
    answer = CompletionAnswer(service, body, id, plan.model, plan.done.texts)
    prompts = plan.done.token_ids
    group = RequestGroup() if len(prompts) > 1 else None
    try:
        for position, token_ids in enumerate(prompts):
            answer.streams.append(await service.submit(f"{id}-{position}", token_ids, plan.params, group))
    except BaseException:
        await answer.aclose()
        raise
    return answer


@dataclass
class CompletionAnswer:
    """The responses that are being made, in OpenAI's shapes. Completion i of prompt p has the index p * n + i."""

    service: Service
    body: CompletionRequest
    id: str
    model: str
    texts: Sequence[str | None]
    streams: list[Generation] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    log: JsonObject = field(default_factory=dict)
    named_events = False

    async def aclose(self) -> None:
        async with contextlib.AsyncExitStack() as closing:
            for stream in self.streams:
                closing.push_async_callback(stream.aclose)

    async def whole(self) -> JsonObject:
        ended: dict[int, RequestOutput] = {}
        async with contextlib.aclosing(merged(self.streams)) as news:
            async for position, chunk in news:
                if chunk.output is not None:
                    ended[position] = chunk.output
        outputs = [ended[position] for position in range(len(self.streams))]
        self.log.update(log_facts(outputs))
        num_tokens = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        num_tokens += sum(len(output.prompt_logprobs or ()) for output in outputs)
        if len(outputs) <= _AT_ONCE and num_tokens <= FEW_TOKENS:
            return self._whole(outputs)
        return await asyncio.to_thread(self._whole, outputs)

    def _whole(self, outputs: list[RequestOutput]) -> dict[str, Any]:
        choices = [
            self._choice(position * self.body.n, answer, output, self.texts[position])
            for position, output in enumerate(outputs)
            for answer in output.outputs
        ]
        return self._frame(choices) | {"usage": usage(outputs)} | self._timings(outputs)

    def _choice(self, base: int, answer: CompletionOutput, output: RequestOutput, prompt: str | None) -> JsonObject:
        text, tokens = answer.text, list(answer.token_ids)
        entries: list[dict[int, Logprob] | None] = list(answer.logprobs or ())
        if self.body.echo:
            text = (self._text(output.prompt_token_ids) if prompt is None else prompt) + text
            tokens = output.prompt_token_ids + tokens
            entries = [*(output.prompt_logprobs or ()), *entries]
        logprobs = None
        if self.body.logprobs is not None:
            offsets = self._offsets(len(text) - len(answer.text)).take(answer.token_ids)
            if self.body.echo:
                offsets = self._offsets(0, skip_special_tokens=False).take(output.prompt_token_ids) + offsets
            logprobs = self._logprobs(tokens, entries, offsets)
        choice = {
            "index": base + answer.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_entries(output)
        return choice | ({"error": answer.error} if answer.error else {})

    async def events(self) -> AsyncGenerator[JsonObject, None]:
        """The chunks of the stream, of all prompts as they come."""
        outputs: dict[int, RequestOutput] = {}
        offsets: dict[int, TextOffsets] = {}  # by index
        async with contextlib.aclosing(merged(self.streams)) as news:
            async for position, chunk in news:
                index = position * self.body.n + chunk.index
                if chunk.output is not None:
                    outputs[position] = chunk.output
                if not chunk.delta and chunk.logprobs is None and chunk.finish_reason is None:
                    continue
                logprobs = None
                if chunk.logprobs is not None:
                    places = offsets.setdefault(index, self._offsets(0)).take(chunk.token_ids)
                    logprobs = self._logprobs(chunk.token_ids, chunk.logprobs, places)
                choice = {"index": index, "text": chunk.delta, "logprobs": logprobs, "finish_reason": None}
                if chunk.finish_reason is not None:
                    choice |= {"finish_reason": chunk.finish_reason, "stop_reason": chunk.stop_reason}
                    choice |= {"error": chunk.error} if chunk.error else {}
                last = len(self.streams) == 1 and chunk.output is not None
                yield self._frame([choice]) | (self._timings([outputs[position]]) if last else {})
        ended = [outputs[position] for position in sorted(outputs)]
        self.log.update(log_facts(ended))
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield self._frame([]) | {"usage": usage(ended)}

    def _frame(self, choices: list[dict[str, object]]) -> JsonObject:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    @staticmethod
    def _timings(outputs: Sequence[RequestOutput]) -> JsonObject:
        """Of a request with one prompt."""
        return {"timings": timings(outputs[0])} if len(outputs) == 1 else {}

    def _logprobs(
        self, token_ids: list[int], entries: Sequence[dict[int, Logprob] | None], offsets: list[int]
    ) -> JsonObject:
        """OpenAI's older form: lists by position. A prompt's first token has none."""
        tokens = [self.service.engine.token_text(token_id) or "" for token_id in token_ids]
        chosen: list[float | None] = []
        top: list[dict[str, float] | None] = []
        for token_id, entry in zip(token_ids, entries, strict=True):
            chosen.append(None if entry is None else max(entry[token_id].logprob, -9999.0))
            top.append(None if entry is None else _by_text(entry))
        return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": top, "text_offset": offsets}

    def _offsets(self, start: int, skip_special_tokens: bool | None = None) -> TextOffsets:
        skip = self.body.skip_special_tokens if skip_special_tokens is None else skip_special_tokens
        return TextOffsets(StreamDecoder(self.service.engine.tokenizer, skip), start)

    def _text(self, token_ids: list[int]) -> str:
        return self.service.engine.decode(token_ids, skip_special_tokens=False)


class TextOffsets:
    """Computes where tokens begin in their text [characters]. A character of several tokens belongs to the last one."""

    def __init__(self, decoder: StreamDecoder, start: int = 0):
        self._decoder = decoder
        self._offset = start

    def take(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the offsets of the next tokens."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._decoder.push([token_id]))
        return offsets


def _by_text(entry: dict[int, Logprob]) -> dict[str, float]:
    """Returns log-probabilities by the token's text. Of tokens with the same text the likelier one counts."""
    texts: dict[str, float] = {}
    for one in entry.values():
        text = one.decoded_token or ""
        texts[text] = max(texts.get(text, -9999.0), one.logprob)
    return texts


async def merged(streams: Sequence[Any]) -> AsyncGenerator[tuple[int, Any], None]:
    """Yields (index of the stream, its next item) as items arrive. Closing it closes all streams."""
    queue: asyncio.Queue[tuple[int, Any, Exception | None]] = asyncio.Queue(maxsize=len(streams))

    async def feed(position: int, stream: Any) -> None:
        error: Exception | None = None
        async with contextlib.aclosing(stream):
            try:
                async for item in stream:
                    await queue.put((position, item, None))
            except Exception as caught:
                error = caught
        await queue.put((-1, None, error))

    tasks: list[asyncio.Task[None]] = []
    num_open = len(streams)
    try:
        for position, stream in enumerate(streams):
            tasks.append(asyncio.ensure_future(feed(position, stream)))
            if len(tasks) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        while num_open:
            position, item, error = await queue.get()
            if error is not None:
                raise error
            if position < 0:
                num_open -= 1
            else:
                yield position, item
    finally:
        for start in range(0, len(tasks), _AT_ONCE):
            for task in tasks[start : start + _AT_ONCE]:
                task.cancel()
            await asyncio.gather(*tasks[start : start + _AT_ONCE], return_exceptions=True)
