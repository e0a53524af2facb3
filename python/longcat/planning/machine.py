"""Measures this machine: its memory bandwidth, and the memory of a process without a model."""

from __future__ import annotations

import os
import time

import longcat._core as _core

_WHEN_AT_WORK = 4 << 19  # [bytes] for thread stacks, and code that is first read in computation (measured)

# A process that has imported everything an engine needs, with the tokenizer if there is one.
_BARE_PROCESS = """
import os, sys, longcat.engine.engine, longcat.request.tokenizer, tokenizers
keep = longcat.request.tokenizer.Tokenizer(sys.argv[1]) if len(sys.argv) > 1 else None
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


def process_bytes(model: str) -> int:
    """Resident size of a process without its model: Python, libraries, tokenizer. Starts a process to measure it."""
    from longcat.support.child_process import run_program

    tokenizer = [model] if os.path.exists(os.path.join(model, "tokenizer.json")) else []
    return int(run_program("plan", _BARE_PROCESS, *tokenizer)) + _WHEN_AT_WORK


def measured_bandwidth(seconds: float = 0.3) -> float:
    """Memory read by all cores of this process together [bytes/s]: the best of several passes."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    num_threads = _core.available_threads()
    # 32 MiB each, larger than a core's share of the cache
    arrays = [np.ones(8 << 20, np.float32) for _ in range(num_threads)]
    best, end = 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(num_threads) as pool:
        while time.perf_counter() < end:
            start = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - start))
    return best
