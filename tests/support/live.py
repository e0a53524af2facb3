"""A `longcat serve` in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx


def until(condition, timeout=30.0):
    """Waits; returns how long it took [s]."""
    start = time.perf_counter()
    while not condition():
        assert time.perf_counter() - start < timeout
        time.sleep(0.01)
    return time.perf_counter() - start


def descendants(process: int) -> list[int]:
    """Processes that this one and its children have started and that run."""
    found: list[int] = []
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in listed.read_text().split()]
    return [*filter(is_running, found), *(one for child in found for one in descendants(child))]


def is_running(process: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class LiveServer:
    """Starts, waits until it is ready, and ends it with SIGTERM.

    Args:
        model: checkpoint folder.
        arguments: of `longcat serve`; `program` in its place is Python code that serves on port 0.
        launcher: words before the command, as of mpirun.
    """

    def __init__(
        self,
        model: str,
        *arguments: str,
        program: str | None = None,
        env: dict[str, str] | None = None,
        launcher: Sequence[str] = (),
    ):
        serve = ["-m", "longcat", "serve", model, "--port", "0", "--log-format", "json", *arguments]
        command = ["-c", program] if program else serve
        self.process = subprocess.Popen(
            [*launcher, sys.executable, *command], stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()
        assert self._listening.wait(60) and self.url, "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r'listening on (https?://[^\s"]+)', line):
                self.url = match[1]
                self._listening.set()
        self._listening.set()

    def wait_ready(self, **options) -> LiveServer:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(self.url + "/ready", **options).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.02)
        raise AssertionError("not ready: " + "".join(self.lines))

    def log(self) -> list[dict]:
        """The lines of the access log."""
        return [line for line in map(json.loads, filter(lambda text: text[0] == "{", self.lines)) if "path" in line]

    def metric(self, name: str, **options) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(self.url + "/metrics", **options).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"longcat:{name}(\{{|\s)", line))

    def terminate(self, timeout: float = 40) -> int:
        """Sends SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def __enter__(self) -> LiveServer:
        return self.wait_ready()

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
