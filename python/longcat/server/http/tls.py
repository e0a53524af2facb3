"""The TLS handshake of a connection, counted and displaced like the connection itself."""

from __future__ import annotations

import asyncio
import ssl

from longcat.server.http.http_protocol import LimitedHttpProtocol


class TlsHandshake(asyncio.Protocol):
    """A connection until its TLS handshake is complete; then `protocol` takes over.

    A server of asyncio's own tells a protocol nothing of a connection before its handshake is complete. Silent
    connections then take all files of the process, and no other client is accepted.

    Args:
        protocol: of the connection after the handshake, which has `header_timeout` of its settings.
        context: the server's certificate and key.
    """

    _transport: asyncio.Transport
    _task: asyncio.Task[None]

    def __init__(self, protocol: LimitedHttpProtocol, context: ssl.SSLContext):
        self._protocol = protocol
        self._context = context
        self._received: list[bytes] = []  # behind the handshake, before its end was noticed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._protocol.connections.add(self)  # type: ignore[arg-type]  # uvicorn calls shutdown() of each
        if not self._protocol.table.admit(self):
            self.cut()
        self._task = self._protocol.loop.create_task(self._shake_hands())

    async def _shake_hands(self) -> None:
        protocol, tls = self._protocol, None  # tls: None as well for a client that leaves during its handshake
        try:
            if not self._transport.is_closing():
                tls = await protocol.loop.start_tls(
                    self._transport,
                    self,
                    self._context,
                    server_side=True,
                    ssl_handshake_timeout=protocol.settings.header_timeout,
                )
        except OSError:
            pass  # the client left, is late, or does not speak TLS
        finally:
            protocol.connections.discard(self)
            protocol.table.closed(self)
        if tls is not None and not tls.is_closing():
            tls.set_protocol(protocol)
            protocol.connection_made(tls)
            for data in self._received:
                protocol.data_received(data)

    def data_received(self, data: bytes) -> None:
        self._received.append(data)

    def cut(self) -> None:
        """Ends the connection now."""
        self._transport.abort()

    def drain(self) -> None:
        """Ends the connection: it has no request yet."""
        self.cut()

    def shutdown(self) -> None:
        """Called by uvicorn at the end."""
        self.cut()
