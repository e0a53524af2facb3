"""Receives, parses and checks the bodies of requests, with a bound on the bytes of all bodies at one time."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, get_type_hints

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.responses import Response

from longcat.server.http.body import Body
from longcat.server.http.errors import ApiError, ClientLeft, validation_error
from longcat.server.http.json_text import JsonError, parse_large, parse_small
from longcat.server.http.streaming import unless_client_leaves
from longcat.server.settings import ServerSettings
from longcat.support.json_types import Json

log = logging.getLogger("longcat.server")
B = TypeVar("B", bound=Body)

_SMALL = 16 << 10  # bytes; parsing and checking them takes at most 2 ms
_LARGE = 64 << 10  # bytes; more are parsed in steps
_LARGE_BODY_RATE = 64 << 20  # bytes a second of all large bodies together; takes a fifth of the event loop's time
_TRIM_BYTES = 1 << 20
_MAX_NOTED = 1000  # names of unknown fields that the log has told


class JsonRoute(APIRoute):
    """A route whose endpoint takes `body`, a subclass of Body, and `request`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Json, Json, Response]]:
        model = get_type_hints(self.endpoint).get("body")
        if model is None:
            return super().get_route_handler()

        async def handle(request: Request) -> Response:
            intake: Intake = request.app.state.service.intake
            with Room(intake) as room:
                request.state.room = room
                response: Response = await self.endpoint(body=await intake.read(request, model, room), request=request)
                return response

        return handle


class Room:
    """The part of one body in the bytes that all bodies may take. It ends with the request at the latest."""

    def __init__(self, intake: Intake):
        self._intake = intake
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Makes room for more of the body.

        Raises:
            ApiError: 503, large bodies of other requests fill it.
        """
        self._num_bytes += num_bytes
        self._intake.num_bytes += num_bytes
        self._intake.trim()
        most = self._intake.settings.max_waiting_bytes
        if self._num_bytes > _LARGE and self._intake.num_bytes > most:
            raise ApiError(
                503,
                f"[request] large bodies wait in all {most} bytes that are kept for them; expected room. "
                "Try again later.",
                code="busy",
                retry_after=self._intake.settings.retry_after,
            )

    def leave(self) -> None:
        self._intake.num_bytes -= self._num_bytes
        self._num_bytes = 0
        self._intake.trim()

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()


class Intake:
    """Receives, parses and checks bodies: small ones at once, others one by one on a thread.

    All work on large bodies and texts is done on `thread`: Python computes in one thread at a time, and with two that
    want to compute the event loop would wait for both before each of its turns.
    """

    def __init__(self, settings: ServerSettings):
        self.settings = settings
        self.num_bytes = 0  # of all bodies that have room
        self._most_bytes = 0  # since memory was given back
        self.thread = ThreadPoolExecutor(1, "longcat-large")
        self._noted: set[str] = set()
        self._next_piece = 0.0  # when the next piece of a large body may be read [s]

    def trim(self) -> None:
        """Gives the memory of large bodies back to the system, once none of them is left: malloc keeps it."""
        self._most_bytes = max(self._most_bytes, self.num_bytes)
        if self.num_bytes < _LARGE and self._most_bytes > _TRIM_BYTES:
            self._most_bytes = 0
            self.thread.submit(_malloc_trim)

    async def read(self, request: Request, model: type[B], room: Room) -> B:
        """The checked body of a request.

        Raises:
            ApiError: it is too long, no JSON, or not what `model` says.
            ClientLeft: the client has.
        """
        _check_sender(request.headers, self.settings)
        request.app.state.service.lifecycle.check_ready()
        pieces: list[bytes] = []
        num_bytes = 0
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            piece = message.get("body", b"")
            room.take(len(piece))
            pieces.append(piece)
            num_bytes += len(piece)
            if not message.get("more_body", False):
                break
            if num_bytes > _SMALL:
                await self._pace(len(piece))
        if num_bytes <= _SMALL:
            body = _checked(model, pieces, parse_small)
        else:
            body = await unless_client_leaves(request, self._checked_on_thread(model, pieces, num_bytes))
        body._num_bytes = num_bytes
        if ignored := body.ignored():
            request.state.log["ignored"] = ignored
            self._note(ignored, body)
        return body

    async def _pace(self, num_bytes: int) -> None:
        """Waits until the next piece of a large body may be read; its connection is not read from meanwhile.

        All large bodies share one rate, so that the event loop always has time for other requests.
        """
        now = asyncio.get_running_loop().time()
        self._next_piece = max(self._next_piece, now) + num_bytes / _LARGE_BODY_RATE
        await asyncio.sleep(self._next_piece - now)

    async def _checked_on_thread(self, model: type[B], pieces: list[bytes], num_bytes: int) -> B:
        has_left = threading.Event()
        parse: Callable[[bytes], Json] = parse_small
        if num_bytes > _LARGE:
            parse = functools.partial(parse_large, is_wanted=lambda: not has_left.is_set())
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, _checked, model, pieces, parse)
        finally:
            has_left.set()

    def _note(self, names: list[str], body: Body) -> None:
        """Logs each name once."""
        for name in names:
            if name not in self._noted and len(self._noted) < _MAX_NOTED:
                self._noted.add(name)
                log.info("[request] field %s is unknown and ignored; %s", name, body.hint(name))


def _checked(model: type[B], pieces: list[bytes], parse: Callable[[bytes], Json]) -> B:
    """The body in `pieces`, which are gone afterwards: their memory is given back here and not on the event loop."""
    try:
        data = b"".join(pieces)
        pieces.clear()
        value = parse(data)
        if not isinstance(value, dict):
            raise JsonError("[request] the body is JSON, but no object; expected {...} with the fields of the request.")
        body = model.model_validate(value)
    except JsonError as error:
        raise ApiError(400, str(error)) from None
    except ValidationError as error:
        raise validation_error(error, model, value) from None
    except RecursionError:
        raise ApiError(400, "[request] the body nests lists and objects too deep; expected less.") from None
    if refused := body.refusal():
        name, message = refused
        raise ApiError(400, message, param=name)
    return body


def _malloc_trim() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # a C library other than glibc
        pass


def _check_sender(headers: Headers, settings: ServerSettings) -> None:
    """Refuses what a page of another site can send without being asked for leave: any body that names no JSON."""
    kind = headers.get("content-type")
    if kind is None:
        origin = headers.get("origin")
        if origin is not None and not settings.allows_origin(origin, headers.get("host")):
            raise ApiError(
                403,
                f"[request] a page of {origin[:100]} sends a body without Content-Type; expected "
                "application/json. Start the server with --cors-origin to let that page call.",
                code="origin_not_allowed",
            )
        return
    media = kind.partition(";")[0].strip().lower()
    if media != "application/json" and not (media.startswith("application/") and media.endswith("+json")):
        raise ApiError(400, f"[request] Content-Type is {kind[:100]}; expected application/json.")
