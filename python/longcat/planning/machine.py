"""This machine: how fast its memory is read, and what a process without a model takes of it."""

from __future__ import annotations

import os
import time

import longcat._core as _core

_WHEN_AT_WORK = 3 << 19  # stacks of threads, and code that is first touched when they compute (measured)

# What a program has in memory when it has imported all that an engine does, and loaded the tokenizer, if there is one.
_BARE_PROCESS = """
import os, sys, longcat.engine.engine, longcat.request.tokenizer, tokenizers
keep = longcat.request.tokenizer.Tokenizer(sys.argv[1]) if len(sys.argv) > 1 else None
print(int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
"""


def process_bytes(model: str) -> int:
    """Resident size of a program without its model: Python, libraries, tokenizer. Asks a process of its own."""
    from longcat.support.child_process import run_program

    tokenizer = [model] if os.path.exists(os.path.join(model, "tokenizer.json")) else []
    return int(run_program("plan", _BARE_PROCESS, *tokenizer)) + _WHEN_AT_WORK


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
