"""Measures how long a short request waits for its first token while one client's burst holds the server.

python bench/scripts/fairness.py CHECKPOINT --seconds 30

For each burst the script prints the short request's time to first token, beside that of an idle server. It also prints
the tokens that the burst got meanwhile. The requests that leave at the end are part of it: the server must be idle
again.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.live import LiveServer  # noqa: E402

SHORT = {"prompt": [5, 9, 2, 33, 7, 8, 40, 6], "max_tokens": 8, "ignore_eos": True, "stream": True, "temperature": 0}
BETWEEN_S = 0.2
STARTS_S = 1.0  # from the burst's requests to the first short one


def burst_bodies(max_model_len: int) -> dict[str, list[dict[str, Any]]]:
    """The requests of each burst, all sent at once; a request's prompt and completion fill the context."""
    rest = {"temperature": 1.0, "ignore_eos": True, "stream": True}
    output = max_model_len // 4
    long_prompts = [[(i + 7 * j) % 1000 + 10 for j in range(max_model_len - output)] for i in range(512)]
    return {
        "8 long prompts": [{"prompt": ids, "max_tokens": output, **rest} for ids in long_prompts[:8]],
        "512 long prompts": [{"prompt": ids, "max_tokens": output, **rest} for ids in long_prompts],
        "one prompt, n = 128": [{"prompt": [5, 6, 7], "max_tokens": max_model_len - 8, "n": 128, **rest}],
        "1,024 prompts of one call, n = 2": [
            {"prompt": [[i, 6, 7] for i in range(10, 1034)], "max_tokens": max_model_len - 8, "n": 2, **rest}
        ],
        "64 clients, n = 16": [
            {"prompt": ids[:64], "max_tokens": output, "n": 16, **rest} for ids in long_prompts[:64]
        ],
    }


def send(url: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent its request."""
    place = urlsplit(url)
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection((place.hostname, place.port), timeout=300)
    connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    return connection


def first_token_s(url: str) -> float:
    """Seconds to the first token of a short request."""
    start = time.perf_counter()
    received = b""
    with send(url, SHORT) as connection:
        while b"data: {" not in received:
            part = connection.recv(65536)
            assert part, received
            received += part
    return time.perf_counter() - start


class Burst:
    """Sends requests at once, and reads their streams on a thread until it is stopped."""

    def __init__(self, url: str, bodies: list[dict[str, Any]]):
        self._stopped = False
        self._open = selectors.DefaultSelector()
        for body in bodies:
            self._open.register(send(url, body), selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopped and self._open.get_map():
            for key, _ in self._open.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                if not key.fileobj.recv(1 << 20):
                    self._open.unregister(key.fileobj)
                    key.fileobj.close()

    def stop(self) -> None:
        """Closes the connections of requests that still run."""
        self._stopped = True
        self._thread.join()
        for key in list(self._open.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=30, help="of each burst (default 30)")
    parser.add_argument("--max-model-len", type=int, default=2048)
    args = parser.parse_args()

    flags = ["--max-model-len", str(args.max_model_len), "--disable-access-log", "--no-enable-prefix-caching"]
    with LiveServer(args.model, *flags) as server:
        first_token_s(server.url)
        idle = statistics.median(first_token_s(server.url) for _ in range(20))
        print(f"idle server: first token after {idle:.3f} s (median of 20)")
        for name, bodies in burst_bodies(args.max_model_len).items():
            tokens, prompt_tokens = (server.metric(name) for name in ("generation_tokens_total", "prompt_tokens_total"))
            burst = Burst(server.url, bodies)
            start = time.perf_counter()
            time.sleep(STARTS_S)
            times: list[float] = []
            while time.perf_counter() < start + args.seconds:
                times.append(first_token_s(server.url))
                time.sleep(BETWEEN_S)
            seconds = time.perf_counter() - start
            running, waiting = (server.metric(f"num_requests_{state}") for state in ("running", "waiting"))
            made = server.metric("generation_tokens_total") - tokens
            read = server.metric("prompt_tokens_total") - prompt_tokens
            burst.stop()
            stopped = time.perf_counter()
            while server.metric("num_requests_running") + server.metric("num_requests_waiting") > 0:
                time.sleep(0.01)
            print(
                f"{name}: {len(times)} short requests, first token median {statistics.median(times):.3f} s, "
                f"worst {max(times):.3f}, {max(times) - idle:+.3f} beside idle; at the end {running:.0f} ran, "
                f"{waiting:.0f} waited; {read / seconds:.0f} prompt and {made / seconds:.0f} generated tokens/s; "
                f"idle {time.perf_counter() - stopped:.2f} s after",
                flush=True,
            )


if __name__ == "__main__":
    main()
