"""Runs a server until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from longcat._core import Error
from longcat.server.app import Application
from longcat.server.http_protocol import LimitedHttpProtocol
from longcat.server.settings import ServerSettings

_GOODBYE_SECONDS = 5  # for connections to close


class Server(uvicorn.Server):
    """uvicorn, with signals handed to the lifecycle: the first drains, the second hurries."""

    lifecycle: Any
    loop: asyncio.AbstractEventLoop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.loop.call_soon_threadsafe(self.lifecycle.terminate)


def bind(host: str, port: int) -> socket.socket:
    """The socket to listen on, before anything slow begins.

    Raises:
        longcat.Error: the address is taken, or is none of this machine.
    """
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        raise Error(f"[serve] cannot listen on {host} port {port}: {error}; choose another --host or --port") from None
    return sock


def run(engine: Any, settings: ServerSettings, sock: socket.socket, **ssl: Any) -> int:
    """Serves until SIGTERM or SIGINT, or until the engine dies.

    Args:
        sock: bound, from `bind`.
        ssl: uvicorn's ssl_keyfile, ssl_certfile, ssl_ca_certs, ssl_keyfile_password, ssl_cert_reqs.
    Returns:
        The exit code: 0 after draining, 1 when the engine died.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="longcat: %(message)s")
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _raise_file_limit()
    return uvloop.run(_serve(engine, settings, sock, ssl))


async def _serve(engine: Any, settings: ServerSettings, sock: socket.socket, ssl: dict[str, Any]) -> int:
    def end() -> None:
        server.should_exit = True

    app = Application(engine, settings, on_end=end)
    protocol = type("Protocol", (LimitedHttpProtocol,), {"max_header_bytes": settings.max_header_bytes})
    config = uvicorn.Config(
        app.asgi, http=protocol, loop="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        date_header=False, timeout_graceful_shutdown=_GOODBYE_SECONDS, backlog=4096, **ssl,
    )  # fmt: skip
    server = Server(config)
    server.lifecycle, server.loop = app.lifecycle, asyncio.get_running_loop()
    watch = asyncio.ensure_future(app.lifecycle.run())
    host, port = sock.getsockname()[:2]
    scheme = "https" if ssl.get("ssl_certfile") else "http"
    host = f"[{host}]" if ":" in host else host
    logging.getLogger("longcat.server").info("listening on %s://%s:%d", scheme, host, port)
    await server.serve(sockets=[sock])
    watch.cancel()
    return 1 if app.lifecycle.state == "dead" else 0


def _raise_file_limit() -> None:
    """Each client is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
