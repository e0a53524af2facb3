"""Answers that arrive piece by piece, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from longcat.server.errors import ClientLeft, to_json

T = TypeVar("T")


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client closes its connection.

    Raises:
        ClientLeft: it did.
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


class EventStream(Response):
    """Server-sent events, as they come, then [DONE]. A client that leaves, or takes nothing for a while, ends `events`.

    Args:
        events: JSON values; closed in any case.
        send_timeout: how long a client may take nothing [s].
    """

    def __init__(self, events: AsyncIterator[Any], send_timeout: float, headers: Mapping[str, str] | None = None):
        super().__init__(None, 200, {"Cache-Control": "no-cache", **(headers or {})}, "text/event-stream")
        del self.headers["content-length"]
        self._events = events
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(scope, send))
        watcher = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            await _cancel(writer, watcher)

    async def _write(self, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()
        writer = asyncio.current_task()
        assert writer is not None
        abort = scope.get("extensions", {}).get("longcat.abort", lambda: None)

        def give_up() -> None:
            scope["state"]["log"]["slow_reader"] = True
            abort()
            writer.cancel()

        async def deliver(message: dict[str, Any]) -> None:
            timer = loop.call_later(self._send_timeout, give_up)
            try:
                await send(message)
            finally:
                timer.cancel()

        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]
            await deliver({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                body = b"data: " + to_json(event) + b"\n\n"
                await deliver({"type": "http.response.body", "body": body, "more_body": True})
            await deliver({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})
