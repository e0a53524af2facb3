"""The states of a server from its start to its end: ready, draining, or dead with its engine.

starting -> ready -> draining -> (exit 0)
     \\________\\_________\\____-> dead (exit 1)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

from longcat.request.sampling_params import SamplingParams
from longcat.server.garbage import FullCollections
from longcat.server.http.errors import ApiError
from longcat.server.served_engine import ServedEngine
from longcat.server.settings import ServerSettings

log = logging.getLogger("longcat.server")

_WATCH_SECONDS = 0.25  # between two looks at the engine
_ABORT_SECONDS = 5.0  # for the last chunks of aborted requests


class Lifecycle:
    """The state of a server, and the requests it is working on.

    Args:
        engine: the engine that the server needs.
        on_end: called once, when the server has to stop accepting connections and end.
    """

    def __init__(self, engine: ServedEngine, settings: ServerSettings, on_end: Callable[[], None] = lambda: None):
        self.state = "starting"
        self.failure: str | None = None
        self.on_end = on_end
        self.on_drain: Callable[[], None] = lambda: None  # called when draining begins
        self._engine = engine
        self._settings = settings
        self._num_open = 0  # requests of clients
        self._names: set[str] = set()  # requests of the engine
        self._hurry = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """A context for the work on one request. Draining waits for it."""
        self._num_open += 1
        try:
            yield
        finally:
            self._num_open -= 1

    @contextlib.contextmanager
    def generation(self, name: str) -> Iterator[None]:
        """A context for a request of the engine, which is aborted when the time to drain is up."""
        self._names.add(name)
        try:
            yield
        finally:
            self._names.discard(name)

    def check_ready(self) -> None:
        """Raises ApiError 503 unless the server takes requests."""
        if self.is_alive() and self.state == "ready":
            return
        why = self.failure or f"the server is {self.state}"
        raise ApiError(503, why, code=self.state, retry_after=self._settings.retry_after)

    def is_alive(self) -> bool:
        """Returns whether the server is alive. Checks the engine, too."""
        if self.state != "dead" and (failure := self._engine.failure()) is not None:
            self._die(failure)
        return self.state != "dead"

    async def run(self) -> None:
        """Lets the engine make a first token, and checks from then on that it lives."""
        try:
            await self._first_token()
        except Exception as error:
            self._die(f"the first token failed: {error}")
        if self.state == "starting":
            self.state = "ready"
            log.info("ready")
        collections = FullCollections()
        while self.is_alive():
            await asyncio.sleep(_WATCH_SECONDS)
            collections.consider(is_idle=not self._num_open)

    async def _first_token(self) -> None:
        params = SamplingParams(max_tokens=1, ignore_eos=True)
        async for chunk in self._engine.agenerate(prompt_token_ids=[0], sampling_params=params):
            if chunk.output is not None and chunk.finish_reason != "length":
                raise RuntimeError(chunk.output.outputs[0].error or f"it ended with {chunk.finish_reason}")

    def _die(self, failure: str) -> None:
        self.state, self.failure = "dead", failure
        log.error("the engine is dead: %s", failure)
        self.on_end()

    def terminate(self) -> None:
        """Drains the server at the first call. At the second call, aborts the remaining requests."""
        if self._draining is not None:
            self._hurry.set()
        elif self.state != "dead":
            self.state = "draining"
            self.on_drain()
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        log.info("draining: %d requests have %g s to finish", self._num_open, self._settings.shutdown_timeout)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._hurry_or_done(), self._settings.shutdown_timeout)
        if self._names:
            log.info("aborting %d requests", len(self._names))
        for name in list(self._names):
            self._engine.abort(name)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._done(), _ABORT_SECONDS)
        self.on_end()

    async def _hurry_or_done(self) -> None:
        while self._num_open and not self._hurry.is_set():
            await asyncio.sleep(0.02)

    async def _done(self) -> None:
        while self._num_open:
            await asyncio.sleep(0.02)
