"""Streams of chunks from the core's thread to callers: iterators, and async iterators on event loops."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import longcat._core as _core
from longcat._core import Error, QueueFullError
from longcat.chat.reader import ChatChunk, ChatReader
from longcat.engine.request import Completion, Request
from longcat.engine.request_table import RequestTable
from longcat.engine.sources import Uncopied
from longcat.request.outputs import RequestOutput, StreamChunk

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

Chunk = TypeVar("Chunk", StreamChunk, ChatChunk)
AnyChunk = TypeVar("AnyChunk")
Output = TypeVar("Output", bound=RequestOutput)

_RETRY_S = 0.01  # [s] until the next try to queue a request, while the queue is full


class OpenCompletions:
    """The completions of some requests that have not ended, by the core's ids."""

    def __init__(self, table: RequestTable):
        self._table = table
        self._completions: dict[int, Completion] = {}

    def __len__(self) -> int:
        return len(self._completions)

    def values(self) -> list[Completion]:
        return list(self._completions.values())

    def submit(self, request: Request, queue: _core.OutputQueue) -> list[int]:
        """Hands a request to the core; returns the ids of its completions."""
        completions = request.submit(queue)
        self._completions |= completions
        return list(completions)

    def take(self, step: _core.StepOutput) -> StreamChunk | None:
        """Returns the chunk for a step's output; None when its completion has ended."""
        completion = self._completions.get(step.request_id)
        if completion is None:
            return None
        if completion.output.finish_reason is not None:  # ended by close()
            self._completions.pop(step.request_id, None)
            return None
        chunk = completion.take(step, self._table.eos_token_id)
        if chunk.finish_reason is not None:
            self._completions.pop(step.request_id, None)
            if step.finish_reason is None:  # ended by a stop string, which the core does not see
                self._table.abort_completion(step.request_id)
            if completion.request.is_done():
                self._table.forget(completion.request.output.request_id)
        return chunk

    def abort(self) -> None:
        """Ends all open completions."""
        for core_id, completion in list(self._completions.items()):
            if completion.output.finish_reason is None:
                completion.output.text += completion.finish("abort")
            self._table.abort_completion(core_id)
            self._table.forget(completion.request.output.request_id)
        self._completions.clear()


class Stream(Uncopied, Iterator[Chunk]):
    """An iterator over chunks as they arrive. Closing it, as `with` does, ends the requests that still run."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TokenStream(Stream[StreamChunk]):
    """The chunks of some requests as they arrive. Closing or dropping it ends the requests that still run.

    Requests wait here while the core's queue has no room for them.
    """

    def __init__(self, table: RequestTable, requests: Sequence[Request]):
        self._table = table
        self._open = OpenCompletions(table)
        self._later = deque(requests)
        self._queue = _core.OutputQueue()
        self._arrived: deque[_core.StepOutput] = deque()
        self._lock = threading.RLock()  # one reader at a time
        self._submitting = threading.RLock()  # another thread may close the stream meanwhile
        self._submit()

    def _submit(self) -> None:
        with self._submitting:
            while self._later:
                try:
                    self._open.submit(self._later[0], self._queue)
                except QueueFullError:
                    return
                self._later.popleft()

    def __next__(self) -> StreamChunk:
        with self._lock:
            chunk = self._next_chunk()
        if chunk is None:
            raise StopIteration
        return chunk

    def _next_chunk(self) -> StreamChunk | None:
        while True:
            if self._open or self._later:
                self._table.check_open()
            while self._arrived:
                chunk = self._open.take(self._arrived[0])
                self._arrived.popleft()
                if chunk is not None:
                    return chunk
            self._submit()
            if self._open:
                self._queue.wait(self._arrived)
            elif self._later:
                time.sleep(_RETRY_S)
            else:
                return None

    def close(self) -> None:
        with self._submitting:
            self._later.clear()
            self._open.abort()

    def __del__(self) -> None:
        if getattr(self, "_submitting", None):
            self.close()


class ChatStream(Stream[ChatChunk]):
    """The chunks of chat completions as they arrive. Closing it ends the requests that still run."""

    def __init__(self, tokens: TokenStream, reader: ChatReader):
        self._tokens = tokens
        self._reader = reader

    def __next__(self) -> ChatChunk:
        return self._reader.read(next(self._tokens))

    def close(self) -> None:
        self._tokens.close()


class AsyncChunks(Uncopied, AsyncIterator[AnyChunk], Generic[AnyChunk, Output]):
    """Chunks of one request: `async for` yields them, `await` returns the whole output. Closing it ends the request.

    Args:
        chunks: the source of the chunks.
        output_of: returns the output that a chunk carries; only the last chunk carries one.
    """

    def __init__(self, chunks: AsyncGenerator[AnyChunk, None], output_of: Callable[[AnyChunk], Output | None]):
        self._chunks = chunks
        self._output_of = output_of
        self._output: Output | None = None

    def __aiter__(self) -> AsyncChunks[AnyChunk, Output]:
        return self

    async def __anext__(self) -> AnyChunk:
        chunk = await anext(self._chunks)
        self._output = self._output_of(chunk) or self._output
        return chunk

    def __await__(self) -> Generator[Any, None, Output]:
        return self._read_all().__await__()

    async def _read_all(self) -> Output:
        async with aclosing(self._chunks):
            async for _ in self:
                pass
        if self._output is None:
            raise Error("[engine] these chunks were closed before their last one; expected to read them all")
        return self._output

    async def aclose(self) -> None:
        await self._chunks.aclose()


class LoopOutputs:
    """The outputs for all requests of one event loop: a queue that the loop watches, and the waiting streams."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.queue = _core.OutputQueue()
        self._waiting: dict[int, tuple[deque[_core.StepOutput], asyncio.Event]] = {}
        loop.add_reader(self.queue.event_fd(), self._distribute)  # the loop refers to this object, not the reverse

    def _distribute(self) -> None:
        import asyncio

        arrived: deque[_core.StepOutput] = deque()
        self.queue.take(arrived)
        for step in arrived:
            if step.request_id in self._waiting:
                outputs, news = self._waiting[step.request_id]
                outputs.append(step)
                news.set()
        if self.queue.closed:
            asyncio.get_running_loop().remove_reader(self.queue.event_fd())
            for _, news in self._waiting.values():
                news.set()

    async def stream(self, table: RequestTable, request: Request) -> AsyncGenerator[StreamChunk, None]:
        """Submits a request and yields its chunks. Ends the request when the caller stops reading."""
        import asyncio

        completions = OpenCompletions(table)
        arrived: deque[_core.StepOutput] = deque()
        news = asyncio.Event()
        ids = completions.submit(request, self.queue)
        for core_id in ids:
            self._waiting[core_id] = (arrived, news)
        try:
            while completions:
                while arrived:
                    chunk = completions.take(arrived.popleft())
                    if chunk is not None:
                        yield chunk
                if not completions:
                    break
                if self.queue.closed:
                    raise Error("[engine] this engine is closed")
                await news.wait()
                news.clear()
        finally:
            completions.abort()
            for core_id in ids:
                self._waiting.pop(core_id, None)


class EventLoops:
    """The outputs of each event loop that makes requests, as long as the loop exists."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopOutputs] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._loops)

    def running(self) -> LoopOutputs:
        """Returns the outputs of the running loop."""
        import asyncio

        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._loops:
                self._loops[loop] = LoopOutputs(loop)
            return self._loops[loop]

    def close(self) -> None:
        with self._lock:
            queues = [outputs.queue for outputs in self._loops.values()]
        for queue in queues:
            queue.close()


def read_all(chunks: Stream[Chunk], num_requests: int, use_tqdm: bool) -> list[Chunk]:
    """Reads a stream to its end. Returns the last chunk of each request, which carries its output.

    Args:
        use_tqdm: in a terminal, show a progress bar over several requests.
    """
    bar = contextlib.nullcontext()
    if use_tqdm and num_requests > 1 and sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=num_requests, unit="request", delay=2, leave=False)
    last = []
    with chunks, bar as shown:
        for chunk in chunks:
            if chunk.output is not None:
                last.append(chunk)
                if shown is not None:
                    shown.update()
    return last
