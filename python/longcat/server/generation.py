"""From a request's fields to the engine's chunks: parameters, prompts, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from longcat._core import Error, QueueFullError
from longcat.engine.request_table import RequestGroup
from longcat.request.outputs import RequestOutput, StreamChunk
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import StructuredOutputs
from longcat.server.api.protocol import ChatRequest, GenerationBody, TokenizeRequest
from longcat.server.grammar_check import GrammarChecker
from longcat.server.http.errors import ApiError, json_response
from longcat.server.http.intake import Intake
from longcat.server.http.streaming import Answer, EventStream, unless_client_leaves
from longcat.server.lifecycle import Lifecycle
from longcat.server.metrics import ServerMetrics
from longcat.server.served_engine import Chunks, ServedEngine
from longcat.server.settings import ServerSettings
from longcat.support.json_types import JsonObject

T = TypeVar("T")
B = TypeVar("B", bound=GenerationBody)

# Fields that SamplingParams has under the same name.
_SAMPLING = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "include_stop_str_in_output",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
)
# Arguments of Engine.render_chat, and of what it calls.
_RENDERING = (
    "self",
    "messages",
    "tags",
    "tools",
    "tool_choice",
    "add_generation_prompt",
    "continue_final_message",
    "max_text_bytes",
)
_TEXT_THREADS = 2  # templates, tokenizer
_TEXTS_AT_ONCE = 16  # tokenized in one go
_SHORT_BYTES = 64 << 10  # of a text that takes some ms to tokenize
_PIECE_CHARS = 256 << 10  # of a long text, counted before the whole is tokenized
_MAX_CHAT_CHARS = 2 << 20  # of a conversation and its tools; a template writes at most half of that
_GRAMMAR_THREADS = 2
FEW_TOKENS = 4096  # of an answer that is written on the event loop; more are written on a thread


class Service:
    """What the endpoints work with.

    Args:
        engine: a longcat.Engine.
    """

    def __init__(self, engine: ServedEngine, settings: ServerSettings, lifecycle: Lifecycle, metrics: ServerMetrics):
        self.engine = engine
        self.settings = settings
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.max_model_len: int = engine.info()["max_model_len"]
        self.intake = Intake(settings)
        self._text_threads = ThreadPoolExecutor(_TEXT_THREADS, "longcat-text")
        self._longest_token = self.intake.thread.submit(_longest_token, engine)
        self._grammar_threads = ThreadPoolExecutor(_GRAMMAR_THREADS, "longcat-grammar")
        self._checker = GrammarChecker(engine.text_setup(), settings.grammar_timeout)
        self._turn = asyncio.Lock()  # one request is queued in each round of the event loop, however many ask

    def model_name(self, asked: str | None) -> str:
        """The name to answer with.

        Raises:
            ApiError: 404, the model is another.
        """
        names = self.settings.model_names
        if asked and asked not in names:
            raise ApiError(
                404,
                f'[request] model is "{asked[:100]}"; expected {" or ".join(names)}.',
                param="model",
                code="model_not_found",
            )
        return asked or names[0]

    async def in_text_thread(self, work: Callable[[], T]) -> T:
        """`work`, which renders or tokenizes, away from the event loop; what it refuses is the client's mistake.

        Work that has not begun is dropped when the caller is cancelled, as it is when its client leaves.
        """
        with self.refusals():
            return await asyncio.get_running_loop().run_in_executor(self._text_threads, work)

    async def in_thread_for(self, num_bytes: int, work: Callable[[], T]) -> T:
        """As in_text_thread, but long texts wait for each other, and for large bodies."""
        if num_bytes <= _SHORT_BYTES:
            return await self.in_text_thread(work)
        with self.refusals():
            return await asyncio.get_running_loop().run_in_executor(self.intake.thread, work)

    def max_text_bytes(self) -> int:
        """Bytes of the longest text that can fit the context: no token stands for more than the longest one."""
        return max(self.max_model_len * self._longest_token.result(), 1)

    def check_room(self, token_ids: Sequence[int], field: str, num_new: int = 1) -> None:
        """The context has room for a prompt and the first tokens of its answer.

        Args:
            field: of the request, that the prompt came in.
            num_new: those first tokens: 1, or 0 where no answer is asked for.
        Raises:
            ApiError: 400, it has not.
        """
        most = self.max_model_len - num_new
        if len(token_ids) > most:
            raise self._too_long(field, f"{len(token_ids)} tokens", f"at most {most}")

    def _too_long(self, field: str, found: str, expected: str) -> ApiError:
        """In the words and with the code by which clients tell this refusal from others."""
        return ApiError(
            400,
            f"[request] {field} has {found}, which cannot fit: this model's maximum context length is "
            f"{self.max_model_len} tokens (max_model_len={self.max_model_len}); expected {expected}. Shorten it.",
            param=field,
            code="context_length_exceeded",
        )

    async def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts. What cannot fit the context is refused before it is tokenized.

        Raises:
            ApiError: 400, a text is too long.
        """
        token_ids: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = texts[start : start + _TEXTS_AT_ONCE]
            for text in some:
                await self._check_fits(text)
            work = functools.partial(_encode_all, self.engine.encode, some)
            token_ids += await self.in_thread_for(sum(map(len, some)), work)
        return token_ids

    async def _check_fits(self, text: str) -> None:
        if len(text) <= self.max_model_len:
            return
        most = await asyncio.get_running_loop().run_in_executor(None, self.max_text_bytes)
        num_bytes = len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
        if num_bytes > most:
            raise self._too_long("prompt", f"{num_bytes} bytes", f"at most {most} bytes")
        # The count of the pieces differs from that of the whole by little: each cut splits one token, or one word.
        num_tokens = 0
        for start in range(0, len(text) if len(text) > 8 * self.max_model_len else 0, _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            num_tokens += len(await self.in_thread_for(len(piece), functools.partial(self.engine.encode, piece)))
            if num_tokens > 2 * self.max_model_len:
                raise self._too_long("prompt", f"more than {num_tokens} tokens", f"at most {self.max_model_len - 1}")

    def render_chat(self, messages: Any, **options: Any) -> tuple[str, list[int]]:
        """Engine.render_chat, for a text thread; what cannot fit the context is refused before it is tokenized.

        Raises:
            ValueError: the messages are too long.
        """
        num_chars = _num_chars([messages, options.get("tools")])
        if num_chars > _MAX_CHAT_CHARS:
            raise ValueError(
                f"[request] messages and tools have {num_chars} characters; expected at most {_MAX_CHAT_CHARS}. "
                "Shorten them."
            )
        if num_chars > self.max_model_len:
            options["max_text_bytes"] = self.max_text_bytes()
        return self.engine.render_chat(messages, **options)

    @contextlib.contextmanager
    def refusals(self) -> Any:
        """Turns what the engine raises into answers."""
        try:
            yield
        except QueueFullError as error:
            raise ApiError(429, str(error), code="queue_full", retry_after=self.settings.retry_after) from None
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error)) from None
        except Error as error:
            self.lifecycle.check_ready()
            raise ApiError(400, str(error)) from None

    def sampling_params(self, body: GenerationBody, **more: object) -> SamplingParams:
        """The parameters of a request, but for the form of its answer.

        Args:
            more: fields of SamplingParams besides the shared ones.
        Raises:
            ApiError: 400, a field is out of range.
        """
        given = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        if len(stops) > self.settings.max_stop_strings:
            limit = self.settings.max_stop_strings
            raise ApiError(400, f"[request] stop has {len(stops)} strings; expected at most {limit}.", param="stop")
        with self.refusals():
            return SamplingParams.of(given | {"stop": stops} | more, {})

    def logprobs(self, count: int | None) -> int | None:
        if count is not None and count > self.settings.max_logprobs:
            most = self.settings.max_logprobs
            raise ApiError(400, f"[request] logprobs is {count}; expected at most {most}.", param="logprobs")
        return count

    async def compiled(self, form: Any) -> Any:
        """The grammar of a form (None for None), compiled on a thread once a process has shown that it can be.

        Raises:
            ApiError: 400, it is malformed, too large, or takes too long.
        """
        if form is None:
            return None
        loop = asyncio.get_running_loop()
        with self.refusals():
            source = await loop.run_in_executor(self._grammar_threads, lambda: StructuredOutputs.of(form).source())
            await self._checker.check(source)
            return await loop.run_in_executor(self._grammar_threads, self.engine.compile_grammar, form)

    async def submit(
        self, name: str, token_ids: list[int], params: SamplingParams, group: RequestGroup | None = None
    ) -> Generation:
        """Queues a request.

        Args:
            name: of the request, for the engine.
            group: shared by the prompts of one body, which the scheduler weighs together.
        Returns:
            Its chunks, to be closed in any case.
        Raises:
            ApiError: the engine does not take it: the queue is full, the prompt too long, a parameter out of range.
        """
        async with self._turn:
            chunks = self.engine.agenerate(
                prompt_token_ids=token_ids, sampling_params=params, request_id=name, group=group
            )
            generation = Generation(self, name, chunks, params.max_tokens)
            try:
                await generation.queued()
            except BaseException:
                await generation.aclose()
                raise
            return generation


class Generation:
    """The chunks of one request of the engine. Closing it ends the request, taken up or not, and counts it.

    Args:
        chunks: of Engine.agenerate, not begun.
        max_tokens: that were asked for.
    """

    def __init__(self, service: Service, name: str, chunks: Chunks, max_tokens: int):
        self._service = service
        self._chunks = chunks
        self._max_tokens = max_tokens
        self._first: asyncio.Future[StreamChunk] = asyncio.ensure_future(anext(chunks))
        self._is_first = True
        self._output: RequestOutput | None = None
        self._is_refused = False
        self._closing: asyncio.Future[None] | None = None
        self._until_closed = contextlib.ExitStack()
        self._until_closed.enter_context(service.lifecycle.generation(name))
        self._until_closed.callback(self._count)

    async def queued(self) -> None:
        """The first step of `chunks` is done: the engine has taken the request, or has said why not.

        Raises:
            ApiError: it has not.
        """
        await asyncio.sleep(0)
        if self._first.done() and not self._first.cancelled() and self._first.exception() is not None:
            self._is_refused = True
            with self._service.refusals():
                self._first.result()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> StreamChunk:
        try:
            chunk = await (self._first if self._is_first else anext(self._chunks))
        except Error:
            await self.aclose()
            with self._service.refusals():
                raise
        except BaseException:
            await self.aclose()
            raise
        self._is_first, self._output = False, chunk.output
        return chunk

    async def aclose(self) -> None:
        if self._closing is None:
            self._until_closed.close()
            self._closing = asyncio.ensure_future(self._close())
        # Cancellations that come meanwhile must not leave the engine with a request that no client reads.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if not self._first.done():
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._chunks.aclose()

    def _count(self) -> None:
        if self._is_refused:
            return
        if self._output is not None:
            self._service.metrics.observe(self._output, self._max_tokens)
        else:
            self._service.metrics.count_end("abort")


async def respond(request: Request, body: B, start: Callable[[Service, B], Awaitable[Answer]]) -> Response:
    """The answer that `start` begins: whole, or with `stream` as server-sent events."""
    service: Service = request.app.state.service
    service.lifecycle.check_ready()
    answer = await unless_client_leaves(request, start(service, body))
    answer.log = request.state.log
    request.state.room.leave()  # the text is token ids by now
    if body.stream:
        return EventStream(answer, service.settings.send_timeout, service.settings.keepalive_interval)
    async with contextlib.aclosing(answer):
        return json_response(await unless_client_leaves(request, answer.whole()))


def template_variables(body: ChatRequest | TokenizeRequest) -> JsonObject:
    """Variables of the template, from `chat_template_kwargs`.

    Raises:
        ApiError: 400, one is none: what the server passes itself.
    """
    given = body.chat_template_kwargs or {}
    if taken := [name for name in given if name in _RENDERING]:
        message = f"[request] chat_template_kwargs.{taken[0]} is a name of the server's own; expected other names."
        raise ApiError(400, message, param="chat_template_kwargs")
    return given


def answer_form(body: GenerationBody) -> Any:
    """What `response_format`, `structured_outputs` or vLLM's older guided_* fields ask for; None: free text.

    Raises:
        ApiError: 400, they say nothing possible.
    """
    forms = [form for form in (_of_response_format(body.response_format), body.structured_outputs) if form]
    older = {name: getattr(body, f"guided_{name}") for name in ("json", "regex", "choice", "grammar")}
    forms += [{name: value} for name, value in older.items() if value is not None]
    if len(forms) > 1:
        raise ApiError(
            400, "[request] the form of the answer is given twice; expected response_format or structured_outputs."
        )
    return forms[0] if forms else None


def _of_response_format(given: Mapping[str, object] | None) -> JsonObject | None:
    kind = None if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, (Mapping, bool)):
        raise ApiError(
            400,
            f'[request] response_format is {str(given)[:100]}; expected {{"type": "text"}}, '
            '{"type": "json_object"} or {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}.',
            param="response_format",
        )
    return {"json": schema if isinstance(schema, Mapping) else str(schema).lower()}


def usage(outputs: list[RequestOutput]) -> JsonObject:
    """OpenAI's count of tokens."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    completion = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
    cached = sum(output.num_cached_tokens for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _longest_token(engine: ServedEngine) -> int:
    """Bytes of the longest token. A normalizer may shorten a text, so with one a token counts for more."""
    tokenizer = engine.tokenizer
    longest = max(len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size))
    return longest if tokenizer.library.normalizer is None else 4 * longest


def _encode_all(encode: Callable[[str], list[int]], texts: Sequence[str]) -> list[list[int]]:
    return [encode(text) for text in texts]


def _num_chars(value: object) -> int:
    """Characters of all texts in a value of JSON's types."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + _num_chars(item) for name, item in value.items())
    return sum(map(_num_chars, value)) if isinstance(value, list) else 0
