"""ASGI layers around all endpoints: request ids, a line of log for each request, keys, and limits on bodies."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Mapping, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longcat.server.http.errors import CLIENT_LEFT, ApiError, is_messages
from longcat.server.lifecycle import Lifecycle
from longcat.server.logs import PROBES
from longcat.server.metrics import ServerMetrics
from longcat.server.settings import ServerSettings
from longcat.support.json_types import JsonObject

OPEN_PATHS = frozenset({"/", "/health", "/ready"})  # without a key
PAGE_FOLDER = "/page/"  # its files, too
_MAX_PATH_CHARS = 256  # in the log
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """Gives each request an id (the client's X-Request-Id, or a new one), returns it, and logs the outcome.

    Endpoints add to the line through `scope["state"]["log"]`. A slash at the end of a path is ignored.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        lifecycle: Lifecycle,
        metrics: ServerMetrics,
        write: Callable[[dict[str, object]], object],
    ):
        self._app = app
        self._lifecycle = lifecycle
        self._access_log = settings.access_log
        self._metrics = metrics
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["path"].endswith("/") and scope["path"] != "/":
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        line: JsonObject = {}
        scope.setdefault("state", {})
        scope["state"] |= {"request_id": request_id, "log": line}
        start, status = time.time(), CLIENT_LEFT  # unless something is sent

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                if is_messages(scope["path"]):
                    headers.append((b"request-id", request_id.encode()))
                if ignored := line.get("ignored"):
                    headers.append((b"x-ignored-fields", ", ".join(map(urllib.parse.quote, ignored)).encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            with self._lifecycle.request():
                await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.count_response(status)
            if self._access_log and scope["path"] not in PROBES and not scope["path"].startswith(PAGE_FOLDER):
                client = scope["client"][0] if scope.get("client") else None
                facts = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(start)) + f".{int(start % 1 * 1000):03}Z",
                    "request_id": request_id,
                    "client": client,
                    "method": scope["method"],
                    "path": scope["path"][:_MAX_PATH_CHARS],
                    "status": status,
                    "duration_ms": round(1000 * (time.time() - start), 1),
                    **line,
                }
                self._write(facts)


class Guard:
    """Refuses requests for other hosts, requests without a key, and bodies that are too long."""

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self._app = app
        self._keys = [_digest(key.encode()) for key in settings.api_keys]
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        too_long = ApiError(413, f"the body is longer than the limit of {self._max_body_bytes} bytes", code="too_long")
        try:
            self._check_host(headers.get(b"host"))
            given = _given_keys(headers)
            if self._keys and scope["path"] not in OPEN_PATHS and not scope["path"].startswith(PAGE_FOLDER):
                given = [self._known_key(given)]
            scope.setdefault("state", {})["caller"] = given[0]
            length = headers.get(b"content-length", b"")
            if length.isdigit() and int(length) > self._max_body_bytes:
                raise too_long
        except ApiError as error:
            # The rest of the body is not read: the connection ends with the answer.
            response = error.response(scope["path"])
            response.headers["Connection"] = "close"
            return await response(scope, receive, send)
        received = 0

        async def receive_at_most() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise too_long
            return message

        await self._app(scope, receive_at_most, send)

    def _check_host(self, value: bytes | None) -> None:
        """Refuses a Host that an attacker's DNS may have bound to this address. Programs may leave the header out."""
        if value is None or not self._hosts or "*" in self._hosts:
            return
        host = re.sub(r":\d*$", "", value.decode("latin-1").strip().lower()).rstrip(".")
        if host not in self._hosts:
            raise ApiError(
                403,
                f"[request] the header Host is {host[:100]}; expected {' or '.join(sorted(self._hosts))}. "
                "Start the server with --allowed-host to serve other names.",
                code="host_not_allowed",
            )

    def _known_key(self, given: Sequence[bytes]) -> bytes:
        """Compares all digests, so that the time reveals nothing about the keys. Returns the one that fits."""
        matches = [key for key in given for known in self._keys if hmac.compare_digest(key, known)]
        if not matches:
            raise ApiError(
                401,
                'the API key is missing or wrong: expected the header "Authorization: Bearer KEY" or "x-api-key: KEY"',
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return matches[0]


def _given_keys(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """Returns digests of the keys that a client sends, by OpenAI's and Anthropic's headers; of "" if there is none."""
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    keys = [key if scheme.lower() == b"bearer" else b"", headers.get(b"x-api-key", b"")]
    return [_digest(key) for key in filter(None, map(bytes.strip, keys))] or [_digest(b"")]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
