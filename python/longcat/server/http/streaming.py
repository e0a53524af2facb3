"""Streamed responses, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from longcat.server.http.errors import ClientLeft, to_json
from longcat.support.json_types import JsonObject

T = TypeVar("T")


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """Returns the result of `work`, and cancels it when the client closes its connection.

    Raises:
        ClientLeft: the client closed its connection.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_until_disconnect(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        await _cancel(task, watcher)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Answer(Protocol):
    """The engine's results in the shapes of an endpoint: read once, by `whole` or `events`, and then closed.

    Closing it ends its requests, whether anything was read or not. `named_events`: each event goes out under the name
    in its `type`, and the last one ends the stream; else [DONE] does.
    """

    log: JsonObject
    named_events: bool

    async def whole(self) -> JsonObject: ...
    def events(self) -> AsyncGenerator[JsonObject, None]: ...
    async def aclose(self) -> None: ...


class EventStream(Response):
    """Server-sent events, as they arrive. A client that leaves, or reads nothing for a while, ends `answer`.

    Proxies and clients end a connection that is silent, so a comment goes out when there is no event for a while.

    Args:
        answer: closed in any case.
        send_timeout: how long a client may read nothing [s].
        keepalive_interval: how long the stream may be silent [s].
    """

    def __init__(self, answer: Answer, send_timeout: float, keepalive_interval: float = 5.0):
        super().__init__(None, 200, {"Cache-Control": "no-cache"}, "text/event-stream")
        del self.headers["content-length"]
        self._answer = answer
        self._send_timeout = send_timeout
        self._keepalive_interval = keepalive_interval

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(scope, send))
        watcher = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            try:
                await _cancel(writer, watcher)
            finally:  # even where a second cancellation comes while the first is carried out
                await self._answer.aclose()

    async def _write(self, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()
        writer = asyncio.current_task()
        assert writer is not None
        abort = scope.get("extensions", {}).get("longcat.abort", lambda: None)

        def give_up() -> None:
            scope["state"]["log"]["slow_reader"] = True
            abort()
            writer.cancel()

        async def deliver(message: dict[str, object]) -> None:
            timer = loop.call_later(self._send_timeout, give_up)
            try:
                await send(message)
            finally:
                timer.cancel()

        async with (
            contextlib.aclosing(self._answer.events()) as events,
            contextlib.aclosing(self._or_none(events)) as told,
        ):
            await deliver({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in told:
                body = b": waiting\n\n" if event is None else self._text(event)
                await deliver({"type": "http.response.body", "body": body, "more_body": True})
            end = b"" if self._answer.named_events else b"data: [DONE]\n\n"
            await deliver({"type": "http.response.body", "body": end, "more_body": False})

    def _text(self, event: JsonObject) -> bytes:
        name = b"event: " + event["type"].encode() + b"\n" if self._answer.named_events else b""
        return name + b"data: " + to_json(event) + b"\n\n"

    async def _or_none(self, events: AsyncGenerator[JsonObject, None]) -> AsyncGenerator[JsonObject | None, None]:
        """Yields the events, and None whenever there is no event for `keepalive_interval`."""
        while True:
            following = asyncio.ensure_future(anext(events))
            try:
                while not (await asyncio.wait({following}, timeout=self._keepalive_interval))[0]:
                    yield None
                yield following.result()
            except StopAsyncIteration:
                return
            finally:
                if not following.done():
                    await _cancel(following)
