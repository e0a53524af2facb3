"""This machine: its free memory, how fast that is read, and what this process takes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from longcat import _core

_WHEN_AT_WORK = 1 << 20  # stacks of threads, and code that is first touched when they compute (measured)


def available_memory() -> int:
    """What this process may still take [bytes]: the free memory, or what its control group leaves."""
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    return min([free, *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """What control groups leave [bytes], version 2 and 1."""
    for limit_file, used_file in [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ]:
        try:
            with open(limit_file) as limit, open(used_file) as used:
                yield int(limit.read()) - int(used.read())
        except (OSError, ValueError):  # no such group, or "max"
            continue


def process_bytes(model: str) -> int:
    """Resident size of this process with all that an engine imports, and the checkpoint's tokenizer."""
    from longcat.engine import Engine  # noqa: F401
    from longcat.tokenizer import Tokenizer

    keep = Tokenizer(model) if os.path.exists(os.path.join(model, "tokenizer.json")) else None  # noqa: F841
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") + _WHEN_AT_WORK


def measured_bandwidth(seconds: float = 0.3) -> float:
    """Bytes a second that the cores of this process read from memory together, the best of a few passes."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    num_threads = _core.available_threads()
    arrays = [np.ones(8 << 20, np.float32) for _ in range(num_threads)]  # 32 MiB each: more than a share of the cache
    best, end = 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(num_threads) as pool:
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return best
