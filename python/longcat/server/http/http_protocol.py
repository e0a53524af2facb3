"""HTTP/1.1 connections with limits: on headers, trailers and bodies, on time, and on how many there are.

The parser is httptools, the cycle of request and response is uvicorn's. `tests/server/test_http_protocol.py` holds a
contract of the parts of uvicorn that this file relies on; pyproject.toml pins its version.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from longcat.server.http.errors import ApiError
from longcat.server.settings import ServerSettings

_SLICE = 8 << 10  # bytes that are parsed without a look at the limits
# Bytes that a connection reads at once. Small at first, so that many connections take turns quickly; then larger, as
# each read waits for the GIL.
_READ, _READ_OF_LARGE_BODY = 32 << 10, 256 << 10
_UPGRADE_HEADERS = (b"upgrade", b"http2-settings")
_CLOSE_SECONDS = 5.0  # for the last bytes of a connection that is being closed


class Connection(Protocol):
    """What the table of connections does with one of them."""

    def cut(self) -> None: ...

    def drain(self) -> None: ...


class Connections:
    """The open connections of a server. Those without a complete request are ordered by their last progress."""

    def __init__(self, most: int):
        self._most = most
        self._num_open = 0
        self._waiting: dict[Connection, None] = {}

    def admit(self, connection: Connection) -> bool:
        """Counts a new connection. Returns False when there is no room, because all others have a request."""
        self._num_open += 1
        oldest = next(iter(self._waiting), None)
        self._waiting[connection] = None
        if self._num_open <= self._most:
            return True
        if oldest is None:
            return False
        self._waiting.pop(oldest)
        oldest.cut()
        return True

    def waits(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def works(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)

    def drain(self) -> None:
        """Refuses requests whose bodies are not complete, because the server is about to end."""
        for connection in list(self._waiting):
            connection.drain()

    def closed(self, connection: Connection) -> None:
        self._num_open -= 1
        self._waiting.pop(connection, None)


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection. At any moment it has a deadline, or the application works on its request.

    - Headers: `max_header_bytes`, and `header_timeout` from the connection's first moment.
    - A body: `max_body_bytes`, `body_timeout` and `body_rate`. Chunk sizes, chunk extensions and trailers together may
      be as long as the headers and an eighth of the body.
    - An offer to upgrade the protocol is ignored: its request is read again without the offer.
    - `scope["extensions"]["longcat.abort"]` closes the connection without waiting for a client that does not read.
    """

    settings: ServerSettings
    table: Connections
    parser: httptools.HttpRequestParser

    _header_bytes = 0
    _exact_bytes = 0
    _body_bytes = 0
    _other_bytes = 0  # since the headers: what is no body
    _in_headers = True
    _in_message = False
    _is_offer = False
    _refused = False
    _timer: asyncio.TimerHandle | None = None
    _backlog = b""  # behind a request that waits for the answer before it

    # --- connection ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.max_size = _READ
        if self.table.admit(self):
            self._after(self.settings.header_timeout, self._headers_are_late)
        else:
            self._refuse(503, "too many connections are open; try again later", "too_many_connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.table.closed(self)
        super().connection_lost(exc)

    def cut(self) -> None:
        """Ends the connection now."""
        self._refused = True
        self.transport.abort()

    def drain(self) -> None:
        """Refuses a request whose body is not complete, because the server is about to end."""
        if self._in_message and not self._in_headers and not self.pipeline:
            self._refuse(503, "the server is draining", "draining")

    def shutdown(self) -> None:
        """Called by uvicorn at the end: closes, and does not wait for a client that does not read."""
        super().shutdown()
        self._after(1.0, self.cut)

    # --- bytes -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._backlog += data
        self._parse()
        if self.pipeline and self._backlog:
            self.flow.pause_reading()
        if not self._in_message and self._is_idle() and self._timer is None:
            self._await_headers()  # bytes that begin no request yet

    def _parse(self) -> None:
        """Parses slices until a request has to wait for the response before it."""
        data, at = self._backlog, 0
        self._backlog = b""
        while at < len(data) and not self.pipeline and not self._refused and not self.transport.is_closing():
            part = data[at : at + _SLICE]
            at += len(part)
            self._header_bytes += len(part) if self._in_headers else 0
            before = self._body_bytes
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as offer:
                if not self._refused:
                    data, at = self._without_offer() + part[offer.args[0] :] + data[at:], 0
                continue
            except httptools.HttpParserError:
                self._refuse(400, "the bytes are no HTTP/1.1 request", "bad_request")
                return
            if not self._in_headers:
                self._other_bytes += len(part) - max(self._body_bytes - before, 0)
            self._check_sizes()
        if not self._refused:
            self._backlog = data[at:]

    def _check_sizes(self) -> None:
        limit = self.settings.max_header_bytes
        if self._in_headers and self._header_bytes > limit:
            self._refuse_headers()
        elif not self._in_headers and self._in_message:
            if self._other_bytes > limit + _SLICE + self._body_bytes // 8:
                self._refuse(
                    400,
                    f"chunk sizes, extensions and trailers take {self._other_bytes} bytes; expected at most "
                    f"{limit} and an eighth of the body. Send larger chunks.",
                    "too_long",
                )
            elif self._body_bytes > self.settings.max_body_bytes + _SLICE:  # and the application does not read it
                most = self.settings.max_body_bytes
                self._refuse(413, f"the body is longer than the limit of {most} bytes", "too_long")

    def _without_offer(self) -> bytes:
        """Returns the headers of a request without its offer of another protocol, for a new parser."""
        self._is_offer = False
        kept = []
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in _UPGRADE_HEADERS)
            if name not in _UPGRADE_HEADERS and (value or name != b"connection"):
                kept.append(name + b": " + value + b"\r\n")
        version = self.parser.get_http_version().encode()
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = httptools.HttpRequestParser(self)
        self._in_headers, self._header_bytes = True, 0
        return b"".join([first, *kept, b"\r\n"])

    # --- the parser's callbacks ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._exact_bytes = self._body_bytes = self._other_bytes = 0
        self._in_message = True
        if not self._in_headers:  # the next request of a connection
            self._header_bytes = 0
            self._in_headers = True
        if self._timer is None:
            self._await_headers()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._exact_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # or it is a trailer, which nothing here reads
            self._exact_bytes += len(name) + len(value) + 4
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._exact_bytes > self.settings.max_header_bytes:
            self._refuse_headers()
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(405, "CONNECT is a method for proxies; expected GET or POST", "method_not_allowed")
        elif self.parser.should_upgrade():
            self._is_offer = True
        else:
            self._in_headers = False
            self._started = self.loop.time()
            self._after(self.settings.body_timeout, self._body_is_late)
            self.table.waits(self)
            self.scope["extensions"] = {"longcat.abort": self.transport.abort}  # type: ignore[dict-item]
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > _READ:
            self.transport.max_size = _READ_OF_LARGE_BODY  # type: ignore[attr-defined]
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_offer or self._refused:
            return
        self._in_message = False
        self.transport.max_size = _READ  # type: ignore[attr-defined]
        self._stop_timer()
        if self._is_idle():  # answered before its body was complete
            self._await_headers()
        else:
            self.table.works(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._linger()
            return
        self._parse()
        if self._is_idle() and not self._in_message:
            self.table.waits(self)

    # --- deadlines -------------------------------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _after(self, seconds: float, call: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, call)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_headers(self) -> None:
        self._after(self.settings.header_timeout, self._headers_are_late)

    def _headers_are_late(self) -> None:
        if not self._is_idle():  # the answer before is under way
            self._await_headers()
        elif self._header_bytes:
            seconds = self.settings.header_timeout
            self._refuse(408, f"the headers are not complete after {seconds:g} s; send them at once", "timeout")
        else:
            self.cut()

    def _body_is_late(self) -> None:
        allowed = self.settings.body_timeout + self._body_bytes / self.settings.body_rate
        if self.pipeline:  # its turn has not come
            self._started = self.loop.time()
        spent = self.loop.time() - self._started
        if spent < allowed:
            self._after(allowed - spent, self._body_is_late)
            return
        self._refuse(
            408,
            f"{self._body_bytes} bytes of the body came in {spent:.0f} s; expected the whole in "
            f"{self.settings.body_timeout:g} s and 1 s for each {self.settings.body_rate} bytes",
            "timeout",
        )

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._in_message:  # or the body's deadline holds
            self._linger()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._in_message and not self.transport.is_closing():
            self._stop_timer()

    def timeout_keep_alive_handler(self) -> None:
        """Called by uvicorn for an idle connection."""
        super().timeout_keep_alive_handler()
        self._linger()

    def _linger(self) -> None:
        """Ends the connection when its client reads nothing for `send_timeout`."""
        unsent = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < unsent:
                self._linger()
                return
            if self.cycle is not None and not self.cycle.response_complete:  # a stream that waits for its next event
                self.cycle.scope["state"].get("log", {})["slow_reader"] = True
            self.cut()

        self._after(self.settings.send_timeout, look)

    # --- refusals --------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for bytes that are no request."""
        self._refuse(400, "the bytes are no HTTP/1.1 request", "bad_request")

    def _refuse_headers(self) -> None:
        most = self.settings.max_header_bytes
        self._refuse(431, f"the headers are longer than the limit of {most} bytes", "too_long")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Sends an error, unless the application has begun a response, and ends the connection."""
        if self._refused:
            return
        self._refused = True
        self._backlog = b""
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering:
            cycle.disconnected = True  # the application sees that its client has left
            cycle.message_event.set()
        if not self.transport.is_closing() and not (is_answering and cycle.response_started):
            path = (getattr(self, "url", None) or b"").partition(b"?")[0].decode("latin-1")
            body = bytes(ApiError(status, message, code=code).response(path).body)
            head = b"%sConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            self.transport.write(head % (STATUS_LINE[status], len(body)) + body)
        self.transport.close()
        self._after(_CLOSE_SECONDS, self.cut)
