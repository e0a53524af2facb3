"""Jobs for tests/test_worker.py: some answer, others do what a worker has to survive."""

from __future__ import annotations

import json
import os
import time


def prepare(setup: dict[str, str]):
    if "fails" in setup:
        raise ValueError(setup["fails"])
    kept: list[int] = []

    def work(job: bytes) -> bytes:
        what, _, rest = job.partition(b" ")
        if what == b"length":
            return str(len(rest)).encode()
        if what == b"answer":
            return b"y" * int(rest)
        if what == b"facts":
            files = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")]
            return json.dumps({"pid": os.getpid(), "environ": dict(os.environ), "files": files}).encode()
        if what == b"loop":
            while True:
                pass
        if what == b"loop-in-c":
            return str(10 ** (10**9)).encode()
        if what == b"sleep":
            time.sleep(1000)
        if what == b"memory":
            return b"x" * (1 << 30)
        if what == b"grow":
            kept.extend([0] * (3 << 20))
        if what == b"abort":
            os.abort()
        if what == b"kill":
            os.kill(os.getpid(), 9)
        if what == b"exit":
            os._exit(3)
        if what == b"garbage":
            os.write(0, b"\xff" * 100)
        if what == b"bug":
            raise KeyError("a bug")
        return b"done"

    return work
