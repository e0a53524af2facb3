"""Turns the fields of a request into chunks of the engine: parameters, prompts, and the errors on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from longcat._core import Error, QueueFullError
from longcat.engine.request_table import RequestGroup
from longcat.request.outputs import RequestOutput, StreamChunk
from longcat.request.sampling_params import SamplingParams
from longcat.request.structured import WrittenGrammar
from longcat.server.api.protocol import SamplingBody
from longcat.server.grammar_check import GrammarChecker
from longcat.server.http.body import Body, Done
from longcat.server.http.errors import ApiError, json_response
from longcat.server.http.intake import Intake
from longcat.server.http.streaming import Answer, EventStream, unless_client_leaves
from longcat.server.lifecycle import Lifecycle
from longcat.server.metrics import ServerMetrics, TokenClock
from longcat.server.served_engine import Chunks, ServedEngine
from longcat.server.settings import ServerSettings
from longcat.server.texts import Texts
from longcat.support.worker import JobFailed, Pool

T = TypeVar("T")
V = TypeVar("V", bound=Body)
B = TypeVar("B", bound=SamplingBody)

_TEXT_THREADS = 2  # templates, tokenizer
_LARGE_BODIES, _NICENESS = 2, 4  # that are read at one time, behind the engine and the event loop
_GRAMMAR_THREADS = 2
_RENDERERS = 2  # of markdown, at one time
FEW_TOKENS = 4096  # of an answer that is written on the event loop; more are written on a thread


class Service:
    """The services that all endpoints share.

    Args:
        engine: a longcat.Engine.
    """

    def __init__(self, engine: ServedEngine, settings: ServerSettings, lifecycle: Lifecycle, metrics: ServerMetrics):
        self.engine = engine
        self.settings = settings
        self.lifecycle = lifecycle
        self.metrics = metrics
        self.max_model_len: int = engine.info()["max_model_len"]
        self.texts = Texts(engine, settings, self.max_model_len)
        setup = {
            "text": engine.text_setup(),
            "settings": dataclasses.asdict(settings) | {"api_keys": ()},
            "max_model_len": self.max_model_len,
        }
        self.intake = Intake(settings, Pool("longcat.server.api.large_bodies", setup, _LARGE_BODIES, _NICENESS))
        self.renderer = Pool("longcat.server.api.playground.markdown", {}, _RENDERERS, _NICENESS)
        self._text_threads = ThreadPoolExecutor(_TEXT_THREADS, "longcat-text")
        self._text_threads.submit(self.texts.max_text_bytes)  # which takes a moment, once
        self._grammar_threads = ThreadPoolExecutor(_GRAMMAR_THREADS, "longcat-grammar")
        self._checker = GrammarChecker(engine.text_setup(), settings.grammar_timeout)
        self._turn = asyncio.Lock()  # one request is queued in each round of the event loop, however many ask

    async def planned(self, body: V, plan: Callable[[Texts, V], T]) -> T:
        """Runs `plan(texts, body)` on another thread. It renders and tokenizes, unless a worker has done so.

        A plan that has not begun is dropped when the caller is cancelled, as it is when its client leaves.

        Raises:
            ApiError: the request is wrong.
        """
        with self.refusals():
            return await asyncio.get_running_loop().run_in_executor(self._text_threads, plan, self.texts, body)

    def start(self) -> None:
        """Starts the workers for large bodies."""
        self.intake.pool.start()

    def close(self) -> None:
        """Ends all workers."""
        self.intake.pool.close()
        self.renderer.close()
        self._checker.close()

    @contextlib.contextmanager
    def refusals(self) -> Any:
        """Turns exceptions of the engine into error responses."""
        try:
            yield
        except QueueFullError as error:
            raise ApiError(429, str(error), code="queue_full", retry_after=self.settings.retry_after) from None
        except (ValueError, TypeError) as error:
            raise ApiError(400, str(error)) from None
        except Error as error:
            self.lifecycle.check_ready()
            raise ApiError(400, str(error)) from None

    async def compiled(self, grammar: str | None) -> Any:
        """Returns a compiled grammar (None for None): a worker checks it, then a thread compiles it.

        Raises:
            ApiError: 400, it is malformed, too large, or takes too long.
        """
        if grammar is None:
            return None
        with self.refusals():
            try:
                await self._checker.check(grammar)
            except JobFailed as failure:
                raise ApiError(503, f"{failure}. Try again.", retry_after=self.settings.retry_after) from None
            work = functools.partial(self.engine.compile_grammar, WrittenGrammar(grammar=grammar))
            return await asyncio.get_running_loop().run_in_executor(self._grammar_threads, work)

    async def submit(
        self, name: str, token_ids: Sequence[int], params: SamplingParams, group: RequestGroup | None = None
    ) -> Generation:
        """Queues a request.

        Args:
            name: of the request, for the engine.
            group: shared by the prompts of one body, which the scheduler weighs together.
        Returns:
            Its chunks, which the caller must close.
        Raises:
            ApiError: the engine does not take it: the queue is full, the prompt too long, a parameter out of range.
        """
        async with self._turn:
            chunks = self.engine.agenerate(
                prompt_token_ids=list(token_ids), sampling_params=params, request_id=name, group=group
            )
            generation = Generation(self, name, chunks, params.max_tokens)
            try:
                await generation.queued()
            except BaseException:
                await generation.aclose()
                raise
            return generation


class Generation:
    """The chunks of one request of the engine. Closing it ends the request, begun or not, and counts it.

    Args:
        chunks: of Engine.agenerate, not begun.
        max_tokens: the most tokens of each completion.
    """

    def __init__(self, service: Service, name: str, chunks: Chunks, max_tokens: int):
        self._service = service
        self._chunks = chunks
        self._max_tokens = max_tokens
        self._first: asyncio.Future[StreamChunk] = asyncio.ensure_future(anext(chunks))
        self._is_first = True
        self._output: RequestOutput | None = None
        self._is_refused = False
        self._clock = TokenClock(service.metrics.intervals)
        self._closing: asyncio.Future[None] | None = None
        self._until_closed = contextlib.ExitStack()
        self._until_closed.enter_context(service.lifecycle.generation(name))
        self._until_closed.callback(self._count)

    async def queued(self) -> None:
        """Waits until the engine has taken the request, or has refused it.

        Raises:
            ApiError: the engine has refused it.
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
        if chunk.token_ids:
            self._clock.tick(chunk.index, time.perf_counter())
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


@dataclasses.dataclass
class Ready:
    """A plan that is the whole response already: `done.answer`."""

    done: Done


async def respond_ready(request: Request, body: V, plan: Callable[[Texts, V], Ready]) -> Response:
    """Returns the response that `plan` makes, or that a worker has made by it."""
    service: Service = request.app.state.service
    ready = await unless_client_leaves(request, service.planned(body, plan))
    return Response(ready.done.answer, media_type="application/json")


async def respond(request: Request, body: B, start: Callable[[Service, B], Awaitable[Answer]]) -> Response:
    """Returns the answer that `start` begins: whole, or with `stream` as server-sent events."""
    service: Service = request.app.state.service
    service.lifecycle.check_ready()
    answer = await unless_client_leaves(request, start(service, body))
    answer.log = request.state.log
    request.state.room.leave()  # the text is token ids by now
    if body.stream:
        return EventStream(answer, service.settings.send_timeout, service.settings.keepalive_interval)
    async with contextlib.aclosing(answer):
        return json_response(await unless_client_leaves(request, answer.whole()))
