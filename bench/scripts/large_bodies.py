"""Measures a server under large bodies: 64 clients send bodies up to the limit, and half of them leave early.

python bench/scripts/large_bodies.py examples/longcat-tiny --seconds 60

Prints the times of /health meanwhile and the responses by status. Also prints how soon work for clients that left ends,
and the memory of the server and its workers before, at its highest and after. The clients run in a process of their
own, on this machine.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import json
import multiprocessing
import random
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.live import LiveServer  # noqa: E402

LIMIT = 32 << 20  # [bytes] largest body
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"


def bodies() -> dict[str, tuple[str, bytes]]:
    """Bodies by name, each with the path to send it to. Most are as large as the server accepts, some larger."""
    text = "Once upon a time there was a small cat. " * 50_000  # 2 MB
    message = {"role": "user", "content": text[:600_000]}
    given: dict[str, tuple[str, object]] = {
        "one text of 30 MiB": (COMPLETIONS, {"prompt": "a" * (30 << 20), "max_tokens": 1}),
        "a text of 2 MB": (COMPLETIONS, {"prompt": text, "max_tokens": 1}),
        "1,024 prompts": (COMPLETIONS, {"prompt": [text[:2000]] * 1024, "max_tokens": 1}),
        "token ids": (COMPLETIONS, {"prompt": [5] * 500_000, "max_tokens": 1}),
        "a chat of 600 kB": (CHAT, {"messages": [message], "max_tokens": 1}),
        "a chat of 20,000 messages": (CHAT, {"messages": [{"role": "user", "content": "hi"}] * 20_000}),
        "bad words": (CHAT, {"messages": [message], "bad_words": ["word"] * 200_000}),
        "a logit bias of 60,000 ids": (
            CHAT,
            {"messages": [{"role": "user", "content": "hi"}], "logit_bias": {str(i): 1 for i in range(60_000)}},
        ),
        "a schema of 240 kB": (
            CHAT,
            {
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 4,
                "structured_outputs": {"choice": [f"choice {i}" for i in range(12_000)]},
            },
        ),
        "a message of 600 kB": (MESSAGES, {"messages": [message], "max_tokens": 1}),
        "a message of 20,000 blocks": (
            MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}] * 20_000}], "max_tokens": 1},
        ),
        "2,000 tools": (
            MESSAGES,
            {
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 1,
                "tools": [{"name": f"f{i}", "input_schema": {"type": "object"}} for i in range(2000)],
            },
        ),
        "an input of 600 kB": (RESPONSES, {"input": text[:600_000], "max_output_tokens": 1}),
        "an input of 20,000 items": (
            RESPONSES,
            {"input": [{"role": "user", "content": "hi"}] * 20_000, "max_output_tokens": 1},
        ),
        "depth": (CHAT, {"messages": json.loads("[" * 120 + "]" * 120)}),
        "a million fields": (CHAT, {f"field {i}": i for i in range(1_000_000)}),
    }
    made = {name: (path, json.dumps(body).encode()) for name, (path, body) in given.items()}
    made["brackets"] = (CHAT, b"[" * LIMIT)
    made["spaces"] = (CHAT, b" " * (LIMIT - 2) + b"{}")
    return made


class Clients:
    """Starts threads that send the bodies repeatedly until the time is up."""

    def __init__(self, url: str, count: int, seconds: float):
        place = urlsplit(url)
        assert place.hostname is not None and place.port is not None
        self._address = (place.hostname, place.port)
        self._bodies = list(bodies().values())
        self._until = time.perf_counter() + seconds
        self.statuses: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        threads = [threading.Thread(target=self._run, args=(i, i % 2 == 0)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, seed: int, leaves: bool) -> None:
        chooser = random.Random(seed)
        while time.perf_counter() < self._until:
            status = self._request(chooser, leaves)
            with self._lock:
                self.statuses[status] += 1

    def _request(self, chooser: random.Random, leaves: bool) -> str:
        path, body = chooser.choice(self._bodies)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        try:
            with socket.create_connection(self._address, timeout=120) as connection:
                sent = chooser.randrange(len(body)) if leaves and chooser.random() < 0.5 else len(body)
                connection.sendall(head.encode() + body[:sent])
                if leaves:
                    time.sleep(chooser.random() / 2)
                    return "left"
                first = connection.recv(4096)
                return first[9:12].decode() if first else "closed"
        except (ConnectionError, TimeoutError) as error:
            return type(error).__name__


def run_clients(url: str, count: int, seconds: float, statuses: multiprocessing.Queue[dict[str, int]]) -> None:
    """The main function of the clients' process."""
    statuses.put(dict(Clients(url, count, seconds).statuses))


def memory_kib(pid: int) -> int:
    """Anonymous memory of a process and of its workers [KiB]; pages that several of them share count once."""
    total = 0
    for process in [pid, *descendants(pid)]:
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        total += int(text.split("Pss_Anon:")[1].split()[0]) if "Pss_Anon:" in text else 0
    return total


def descendants(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(one for child in children for one in descendants(child))]


def busy_workers(pid: int) -> int:
    """Workers that compute."""
    found = 0
    for process in descendants(pid):
        try:
            found += Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "R"
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def health_ms(url: str) -> float:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    start = time.perf_counter()
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()

    with LiveServer(args.model, "--disable-access-log").wait_ready() as server:
        pid = server.process.pid
        statuses: multiprocessing.Queue[dict[str, int]] = multiprocessing.Queue()
        run_clients(server.url, args.clients, args.seconds / 2, statuses)  # fills the caches, which are bounded
        statuses.get()
        time.sleep(3)
        before = memory_kib(pid)
        times: list[float] = []
        highest = before
        clients = multiprocessing.Process(
            target=run_clients, args=(server.url, args.clients, args.seconds, statuses), daemon=True
        )
        clients.start()
        while clients.is_alive() and statuses.empty():
            times.append(health_ms(server.url))
            if len(times) % 8 == 0:
                highest = max(highest, memory_kib(pid))
            time.sleep(0.02)
        answers = statuses.get(timeout=10)
        clients.join()
        start = time.perf_counter()
        while server.metric("num_requests_running") + server.metric("num_requests_waiting") > 0:
            time.sleep(0.01)
        while busy_workers(pid):
            time.sleep(0.01)
        idle = time.perf_counter() - start
        time.sleep(5)
        after = memory_kib(pid)
        times.sort()
        print(f"answers {dict(sorted(answers.items()))}")
        print(
            f"/health, {len(times)} times: median {statistics.median(times):.1f} ms, "
            f"p99 {times[int(0.99 * len(times))]:.1f}, worst {times[-1]:.1f}"
        )
        print(f"idle {idle:.2f} s after the last client")
        print(
            f"anonymous memory {before} KiB before, {highest} at its highest, {after} after ({after / before - 1:+.1%})"
        )


if __name__ == "__main__":
    main()
