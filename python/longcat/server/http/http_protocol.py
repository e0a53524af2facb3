"""HTTP connections with a limit on headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from longcat.server.http.errors import ApiError

_HEADER_SECONDS = 30.0  # for a request's headers to arrive


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which takes headers of any length, with a limit; and with a way to cut a connection off.

    `scope["extensions"]["longcat.abort"]` closes the connection without waiting for a client that does not read.
    """

    max_header_bytes = 16 << 10

    _header_bytes = 0
    _in_headers = True
    _refused = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        # Headers that are still incomplete after this are as long as all that came; complete ones are counted exactly.
        self._header_bytes += len(data) if self._in_headers else 0
        super().data_received(data)
        if self._in_headers and self._header_bytes > self.max_header_bytes:
            self._refuse()

    def on_message_begin(self) -> None:
        self._exact_bytes = 0
        if not self._in_headers:  # the next request of a connection
            self._header_bytes = 0
            self._in_headers = True
            self._await_headers()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._exact_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._exact_bytes += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stop_timer()
        if self._exact_bytes > self.max_header_bytes:
            self._refuse()
        else:
            self.scope["extensions"] = {"longcat.abort": self.transport.abort}  # type: ignore[dict-item]
            super().on_headers_complete()

    def _await_headers(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        if self._header_bytes:  # an idle connection is uvicorn's to close
            self.transport.close()

    def _refuse(self) -> None:
        if self._refused:
            return
        self._refused = True
        limit = self.max_header_bytes
        error = ApiError(431, f"the headers are longer than the limit of {limit} bytes", code="too_long")
        body = bytes(error.response().body)
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()
