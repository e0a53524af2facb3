"""Sends thousands of random requests to one engine: each must end exactly once, and memory must return.

python bench/scripts/soak.py examples/longcat-tiny --requests 10000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from pathlib import Path

import longcat

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.workload import rss_anon_kib, run_jobs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--kv-cache-memory", default="2MiB", help="small, so that requests preempt each other")
    args = parser.parse_args()

    with longcat.Engine(args.model, max_num_seqs=args.max_num_seqs, kv_cache_memory=args.kv_cache_memory) as engine:
        warm_up = 4000  # reaches the peak of memory: the rarest batch, and the most swapped-out blocks
        asyncio.run(run_jobs(engine, warm_up, args.concurrency, seed=0))
        gc.collect()
        base, start = rss_anon_kib(), time.perf_counter()
        report = asyncio.run(run_jobs(engine, args.requests, args.concurrency, seed=1))
        elapsed = time.perf_counter() - start
        gc.collect()
        after, metrics = rss_anon_kib(), engine.metrics()
        print(f"{args.requests} requests, {report.num_tokens} tokens in {elapsed:.0f} s; ends {dict(report.ends)}")
        print(f"{report.checked_alone} compared with a run alone; {metrics}")
        print(f"RssAnon {base} KiB after warm-up, {after} KiB at the end: {100 * (after / base - 1):+.2f} %")
        assert metrics["num_free_blocks"] == metrics["num_kv_blocks"] and not metrics["num_running"]
        assert after <= 1.01 * base, "memory was left behind"


if __name__ == "__main__":
    main()
