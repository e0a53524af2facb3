"""Measures a server under connections that never end their request: when each is closed, and whether others are served.

python bench/scripts/connections.py examples/longcat-tiny

First some connections of each kind stay open, and the script prints the seconds until the server closed them. Then ten
times as many connections as the server has files come, while other clients ask for a completion. At last the server
gets SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.live import LiveServer  # noqa: E402

POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
DRIP_S = 1.0  # between the bytes of a client that sends them one by one
GIVE_UP_S = 180.0
Address = tuple[str, int]


@dataclass(frozen=True)
class Kind:
    """How a client begins, and the byte that it then sends each second."""

    beginning: bytes
    drip: bytes = b""


KINDS = {
    "silent": Kind(b""),
    "half the headers": Kind(POST),
    "headers, a byte a second": Kind(POST + b"X-A: ", b"a"),
    "half a body": Kind(POST + b'Content-Length: 1000\r\n\r\n{"prompt": '),
    "a body, a byte a second": Kind(POST + b"Content-Length: 1000\r\n\r\n", b" "),
    "half a chunk": Kind(CHUNKED + b'ff\r\n{"prompt": '),
    "half the trailers": Kind(CHUNKED + b"2\r\n{}\r\n0\r\nx-a: "),
    "trailers, a byte a second": Kind(CHUNKED + b"2\r\n{}\r\n0\r\nx-a: ", b"a"),
    "a body without a key, for /health": Kind(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"),
    "idle after a response": Kind(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
}


@dataclass
class Client:
    """One connection, and the first bytes that the server sent."""

    kind: str
    connection: socket.socket
    started: float = field(default_factory=time.perf_counter)
    received: bytes = b""

    def drip(self) -> None:
        if KINDS[self.kind].drip:
            with contextlib.suppress(OSError):
                self.connection.send(KINDS[self.kind].drip)

    def is_closed(self) -> bool:
        """Reads what there is."""
        try:
            data = self.connection.recv(4096)
        except BlockingIOError:
            return False
        except OSError:
            return True
        self.received = self.received or data[:64]
        return not data

    def status(self) -> str:
        return self.received[9:12].decode(errors="replace") or "none"


def connect(address: Address, kind: str) -> Client:
    connection = socket.create_connection(address, timeout=30)
    client = Client(kind, connection)
    with contextlib.suppress(ConnectionError):  # the server had no room for it
        connection.sendall(KINDS[kind].beginning)
    connection.setblocking(False)
    return client


def time_until_closed(clients: list[Client], every_s: float, meanwhile: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds from the connect to the end of each connection, by kind; inf after GIVE_UP_S."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    watch = select.epoll()
    by_file = {client.connection.fileno(): client for client in clients}
    for file in by_file:
        watch.register(file, select.EPOLLIN)
    ends, dripped = time.perf_counter() + GIVE_UP_S, 0.0
    while by_file and time.perf_counter() < ends:
        if time.perf_counter() > dripped + every_s:
            dripped = time.perf_counter()
            for client in by_file.values():
                client.drip()
            meanwhile()
        for file, event in watch.poll(0.2):
            client = by_file[file]
            if event & (select.EPOLLERR | select.EPOLLHUP) or client.is_closed():
                seconds[client.kind].append(time.perf_counter() - client.started)
                watch.unregister(file)
                client.connection.close()
                del by_file[file]
    for client in by_file.values():
        seconds[client.kind].append(float("inf"))
    return seconds


def ask(url: str) -> float:
    """Seconds of one small completion on a new connection."""
    start = time.perf_counter()
    answer = httpx.post(url + "/v1/completions", json={"prompt": "Once", "max_tokens": 1}, timeout=60)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - start


def address_of(server: LiveServer) -> Address:
    place = urlsplit(server.url)
    assert place.hostname is not None and place.port is not None
    return place.hostname, place.port


def show_log(server: LiveServer) -> None:
    """Counts what the log of a server that ended must not have, and shows it."""
    odd = [line for line in server.lines if not line.startswith(("{", "longcat: "))]
    levels = Counter(json.loads(line).get("level", "request") for line in server.lines if line[0] == "{")
    tracebacks = sum("Traceback" in line for line in server.lines)
    print(f"log: {len(server.lines)} lines, levels {dict(levels)}, tracebacks {tracebacks}, other lines {odd[:3]}")
    print(*[line for line in server.lines if "Traceback" in line][:1], end="")


def deadlines(model: str, count: int) -> None:
    with LiveServer(model, "--disable-access-log") as server:
        clients = [connect(address_of(server), kind) for kind in KINDS for _ in range(count)]
        served: list[float] = []
        seconds = time_until_closed(clients, DRIP_S, lambda: served.append(ask(server.url)))
        print(f"{len(clients)} connections; seconds until the server closed them, first and last, and the answer")
        for kind, times in seconds.items():
            statuses = Counter(client.status() for client in clients if client.kind == kind)
            print(f"  {kind:34} {min(times):6.1f} {max(times):6.1f}  {dict(statuses)}")
        print(f"  other clients: {len(served)} served, slowest {max(served):.2f} s")
        start = time.perf_counter()
        code = server.terminate(timeout=60)
        print(f"SIGTERM: exit code {code} after {time.perf_counter() - start:.1f} s")
        show_log(server)


def displaced(model: str, files: int, factor: int) -> None:
    launcher = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    kinds = list(KINDS)
    with LiveServer(model, "--disable-access-log", launcher=launcher) as server, contextlib.ExitStack() as open_ones:
        served: list[float] = []
        for number in range(files * factor):
            client = connect(address_of(server), kinds[number % len(kinds)])
            open_ones.callback(client.connection.close)
            if number % files == files - 1:
                served.append(ask(server.url))
        print(
            f"{files * factor} connections of all kinds at a server with {files} files: "
            f"{len(served)} other clients served, slowest {max(served):.2f} s"
        )
        start = time.perf_counter()
        code = server.terminate(timeout=60)
        print(f"SIGTERM while they are open: exit code {code} after {time.perf_counter() - start:.1f} s (timeout 30 s)")
        show_log(server)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=10, help="connections of each kind (default 10)")
    parser.add_argument("--files", type=int, default=200, help="limit of open files of the second server (default 200)")
    parser.add_argument("--factor", type=int, default=10, help="connections by that limit (default 10)")
    args = parser.parse_args()
    displaced(args.model, args.files, args.factor)
    deadlines(args.model, args.count)


if __name__ == "__main__":
    main()
