"""Receives, parses and checks the bodies of requests, with a bound on the bytes of all bodies at one time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
from array import array
from collections.abc import Callable, Coroutine
from itertools import accumulate, pairwise
from typing import TypeVar, get_type_hints

import orjson
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response

from longcat._core import Error
from longcat.server.http.body import Body, Done, checked
from longcat.server.http.errors import ApiError, ClientLeft
from longcat.server.http.streaming import unless_client_leaves
from longcat.server.settings import ServerSettings
from longcat.support.json_types import Json
from longcat.support.worker import JobFailed, Limits, Pool

log = logging.getLogger("longcat.server")
B = TypeVar("B", bound=Body)

_SMALL = 16 << 10  # bytes; parsing and checking them takes at most 2 ms
_LARGE = 64 << 10  # bytes; more need room
_HUGE = 1 << 20  # bytes; one at a time is read, so that a worker is left for the others
_LARGE_BODY_RATE = 64 << 20  # bytes a second of all large bodies together; takes a fifth of the event loop's time
# What a worker may take for a body: most time goes to tokenizing, most memory to characters of four bytes.
_SECONDS, _SECONDS_PER_BYTE, _WALL_SECONDS = 5.0, 3.0 / (1 << 20), 60.0
_MEMORY, _MEMORY_PER_BYTE = 128 << 20, 12
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
    """The share of one body in the bytes that all bodies may take. It ends with the request at the latest."""

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

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *exc: object) -> None:
        self.leave()


class Intake:
    """Receives and checks bodies: small ones at once, large ones in a worker.

    Args:
        pool: workers of `api/large_bodies.py`.
    """

    def __init__(self, settings: ServerSettings, pool: Pool):
        self.settings = settings
        self.pool = pool
        self.num_bytes = 0  # of all bodies that have room
        self._noted: set[str] = set()
        self._turn = asyncio.Lock()  # of the large body whose next piece comes
        self._huge = asyncio.Lock()

    async def read(self, request: Request, model: type[B], room: Room) -> B:
        """Returns the checked body of a request.

        Raises:
            ApiError: it is too long, no JSON, or not what `model` says.
            ClientLeft: the client has.
        """
        _check_sender(request.headers, self.settings)
        request.app.state.service.lifecycle.check_ready()
        small = bytearray()
        large: mmap.mmap | None = None
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            piece = message.get("body", b"")
            room.take(len(piece))
            if large is None and len(small) + len(piece) > _SMALL:
                large = self._large(model, small)
            if large is None:
                small += piece
            else:
                large.write(piece)
            if not message.get("more_body", False):
                break
            if large is not None:
                await self._pace(len(piece))
        if large is None:
            body = checked(model, small)
            ignored = body.ignored()
        else:
            body, ignored = await unless_client_leaves(request, self._taken_in(model, large))
        if ignored:
            request.state.log["ignored"] = ignored
            self._note(ignored, body)
        return body

    def _large(self, model: type[Body], first: bytearray) -> mmap.mmap:
        """Allocates the job of a worker as mapped memory, which goes back to the system at once, unlike malloc's."""
        name = model.__name__.encode() + b"\n"
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        job = mmap.mmap(-1, len(name) + self.settings.max_body_bytes, flags=flags)  # taken as it is written
        job.write(name + first)
        return job

    async def _taken_in(self, model: type[B], job: mmap.mmap) -> tuple[B, list[str]]:
        """Returns the body that a worker has read, and the names of ignored fields."""
        num_bytes = job.tell()
        limits = Limits(
            cpu_seconds=_SECONDS + num_bytes * _SECONDS_PER_BYTE,
            memory_bytes=_MEMORY + _MEMORY_PER_BYTE * num_bytes,
            wall_seconds=_WALL_SECONDS + 10 * num_bytes * _SECONDS_PER_BYTE,
        )
        try:
            async with self._huge if num_bytes > _HUGE else contextlib.nullcontext():
                with memoryview(job) as view, view[:num_bytes] as part:
                    answer = await self.pool.acall(part, limits)
        except JobFailed as failure:
            raise _too_hard(failure.reason, limits, self.settings) from None
        except Error as error:
            raise ApiError(503, str(error), retry_after=self.settings.retry_after) from None
        end = answer.index(b"\n")
        head = orjson.loads(answer[:end])
        if "error" in head:
            status, message, param, code = head["error"]
            raise ApiError(status, message, param=param, code=code)
        ends = list(accumulate(head["num_ids"], initial=0))  # of the prompts in `ids`
        ids = array("i")
        at = end + 1 + ends[-1] * ids.itemsize
        ids.frombytes(answer[end + 1 : at])
        token_ids = [ids[start:stop] for start, stop in pairwise(ends)]
        body = model.model_validate(head["body"])
        body._done = Done(token_ids, head["grammar"], head["texts"], bytes(answer[at:]))
        return body, head["ignored"]

    async def _pace(self, num_bytes: int) -> None:
        """Waits until the next piece of a large body may be read; its connection is not read from meanwhile.

        All large bodies share one rate, and their pieces come one by one. So the pieces that waited while the event
        loop was late do not all come at once.
        """
        async with self._turn:
            await asyncio.sleep(num_bytes / _LARGE_BODY_RATE)

    def _note(self, names: list[str], body: Body) -> None:
        """Logs each name once."""
        for name in names:
            if name not in self._noted and len(self._noted) < _MAX_NOTED:
                self._noted.add(name)
                log.info("[request] field %s is unknown and ignored; %s", name, body.hint(name))


def _too_hard(reason: str, limits: Limits, settings: ServerSettings) -> ApiError:
    if reason == "killed":
        return ApiError(
            503, "[request] the process that read the body was ended. Try again.", retry_after=settings.retry_after
        )
    found = f"{limits.cpu_seconds:.0f} s" if reason == "time" else f"{limits.memory_bytes >> 20} MiB of memory"
    return ApiError(413, f"[request] the body takes more than {found} to read; expected less. Make it smaller.")


def _check_sender(headers: Headers, settings: ServerSettings) -> None:
    """Refuses what a page of another site can send without a preflight: any body that is not declared as JSON."""
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
