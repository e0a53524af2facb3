"""Runs a server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import resource
import socket
import ssl
import sys
import threading
from types import FrameType
from typing import Any

import uvicorn

from longcat._core import Error
from longcat.server import logs
from longcat.server.app import Application
from longcat.server.generation import Service
from longcat.server.http.http_protocol import Connections, LimitedHttpProtocol
from longcat.server.http.tls import TlsHandshake
from longcat.server.served_engine import ServedEngine
from longcat.server.settings import LOOPBACK_HOSTS, ServerSettings

log = logging.getLogger("longcat.server")

# Of an idle connection. Clients' pools keep one for less (httpx 5, aiohttp 15, Java 30, balancers 60), so a client ends
# it first. If the server did, a request on its way could meet a closed connection.
_KEEP_ALIVE_SECONDS = 75
_GOODBYE_SECONDS = 5  # for connections to close
_SWITCH_SECONDS = 0.0001  # after which the event loop gets its turn when another thread works
# Beyond the process's own: the event loop gets a processor first. While both want one, /health takes half as long.
_ENGINE_NICENESS = 2
_OTHER_FILES = 64  # that the server may need beside its connections
# Connections that one turn of the event loop accepts; asyncio's `backlog` is both. A displaced connection closes its
# file four turns after the new one was accepted. So four times as many of _OTHER_FILES are in use.
_ACCEPTED_AT_ONCE = 8
_BACKLOG = 4096  # connections that the system keeps for the next turns


class Server(uvicorn.Server):
    """uvicorn, which also logs its address. The lifecycle handles signals: the first drains, the second aborts."""

    lifecycle: Any
    settings: ServerSettings
    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.ssl = None  # TlsHandshake has it
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(_BACKLOG)
            lines, warning = logs.address_lines(sock, "https" if self.config.is_ssl else "http", self.settings)
            for line in lines:
                log.info("%s", line)
            if warning is not None:
                log.warning("%s", warning)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.loop.call_soon_threadsafe(self.lifecycle.terminate)


def bind(host: str, port: int) -> socket.socket:
    """Opens the socket to listen on, before anything slow begins.

    Raises:
        longcat.Error: the address is in use, or this machine does not have it.
    """
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # asyncio sets TCP_NODELAY where the protocol is named. Without it, the second packet of a response waits until
        # the client acknowledges the first, 40 ms on a connection that is used again.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, OverflowError) as error:
        raise Error(f"[serve] cannot listen on {host} port {port}: {error}; choose another --host or --port") from None
    return sock


def check_tls(certificate: str, key: str, password: str | None, authorities: str | None) -> None:
    """Checks the files for HTTPS, before anything slow begins.

    Raises:
        longcat.Error: a file is missing, is damaged, or does not match the others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, lambda: password or "")  # a text: OpenSSL would ask the terminal
    except (OSError, ValueError) as error:
        raise Error(
            f"[serve] --ssl-certfile {certificate}, --ssl-keyfile {key}: {error}; expected a certificate and its "
            "private key as PEM files, and --ssl-keyfile-password if the key has one"
        ) from None
    if authorities is not None:
        try:
            context.load_verify_locations(authorities)
        except (OSError, ValueError) as error:
            raise Error(f"[serve] --ssl-ca-certs {authorities}: {error}; expected certificates as a PEM file") from None


def run(
    engine: ServedEngine,
    settings: ServerSettings,
    sock: socket.socket,
    log_options: logs.LogOptions | None = None,
    **tls: object,
) -> int:
    """Serves until SIGTERM or SIGINT, or until the engine dies.

    Args:
        sock: bound, from `bind`.
        log_options: None: text from level info on, to standard error.
        tls: uvicorn's ssl_keyfile, ssl_certfile, ssl_ca_certs, ssl_keyfile_password, ssl_cert_reqs.
    Returns:
        The exit code: 0 after draining, 1 when the engine died.
    """
    options = log_options or logs.LogOptions()
    logs.set_up(options)
    most = max(min(settings.max_connections, _file_limit() - len(os.listdir("/proc/self/fd")) - _OTHER_FILES), 1)
    settings = dataclasses.replace(settings, max_connections=most, allowed_hosts=_allowed_hosts(settings, sock))
    sys.setswitchinterval(_SWITCH_SECONDS)
    _favor_this_thread()
    # Not uvloop: there each callback waits for the GIL. While a thread parses or tokenizes, a turn over 64 busy
    # connections takes seconds there, milliseconds here; idle, uvloop serves 3 % more tokens a second.
    return asyncio.run(_serve(engine, settings, sock, options.summary, tls))


def _favor_this_thread() -> None:
    """Lets this thread, which runs the event loop, have a processor before the engine's threads have one."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0) + _ENGINE_NICENESS  # at most 19, by the system
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != threading.get_native_id():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, niceness)


def web_config(app: Any, protocol: Any, **tls: Any) -> uvicorn.Config:
    """Returns uvicorn's settings for an application.

    Args:
        protocol: makes the protocol of a connection.
        tls: as for `run`.
    """
    return uvicorn.Config(
        app,
        http=protocol,
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        backlog=_ACCEPTED_AT_ONCE,
        **tls,
    )


async def _serve(
    engine: ServedEngine, settings: ServerSettings, sock: socket.socket, summary: bool, tls: dict[str, Any]
) -> int:
    def end() -> None:
        server.should_exit = True

    app = Application(engine, settings, on_end=end)
    service: Service = app.api.state.service
    service.start()
    table = Connections(settings.max_connections)
    protocol = type("Protocol", (LimitedHttpProtocol,), {"settings": settings, "table": table})

    def connection(**options: Any) -> asyncio.Protocol:
        inner = protocol(**options)
        return TlsHandshake(inner, context) if context is not None else inner

    config = web_config(app.asgi, connection, **tls)
    config.load()
    context = config.ssl
    server = Server(config)
    server.lifecycle, server.loop, server.settings = app.lifecycle, asyncio.get_running_loop(), settings
    app.lifecycle.on_drain = table.drain
    tasks = [asyncio.ensure_future(app.lifecycle.run())]
    if summary:
        tasks.append(asyncio.ensure_future(logs.Summary(engine).run()))
    await server.serve(sockets=[sock])
    for task in tasks:
        task.cancel()
    service.close()
    return 1 if app.lifecycle.state == "dead" else 0


def _file_limit() -> int:
    """Raises the limit of open files as far as possible, because each client needs one. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _allowed_hosts(settings: ServerSettings, sock: socket.socket) -> tuple[str, ...]:
    """Returns the allowed values of the header Host: by default loopback names on a loopback address, elsewhere all."""
    host = sock.getsockname()[0]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return settings.allowed_hosts
    own = f"[{host}]" if ":" in host else host
    return (*settings.allowed_hosts, *LOOPBACK_HOSTS, own)
