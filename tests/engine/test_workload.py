"""Many random requests at once: none lost, none twice, nothing left behind. bench/scripts/soak.py runs more of them."""

import asyncio
import gc
import os

import longcat
import pytest

from support.workload import rss_anon_kib, run_jobs

BLOCK_BYTES = 64 * (5 * 96 * 2 + 4)


LOOKUP = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1}


@pytest.mark.parametrize(
    "swap_memory, speculative",
    [(0, None), (3 * BLOCK_BYTES, None), (1 << 30, None), (0, LOOKUP), (0, {"method": "mtp", "adaptive": False})],
    ids=["no swap", "some swap", "swap", "prompt lookup", "mtp"],
)
def test_random_requests(tiny, swap_memory, speculative):
    """300 requests in all, in a cache that is too small for those that run: they preempt each other."""
    with longcat.Engine(
        tiny, max_num_seqs=12, kv_cache_memory=9 * BLOCK_BYTES, swap_memory=swap_memory, max_num_batched_tokens=100,
        speculative=speculative,
    ) as engine:  # fmt: skip
        report = asyncio.run(run_jobs(engine, 100, concurrency=40, seed=swap_memory % 1000))
        metrics = engine.metrics()
        print(report, metrics)
        assert report.checked_alone > 10
        # Some swap: the requests that are preempted may all fit.
        ways = ["num_swaps"] * (swap_memory > 0) + ["num_recomputes"] * (swap_memory <= 3 * BLOCK_BYTES)
        assert sum(metrics[way] for way in ways) > 0 and metrics["prefix_cache_hits"] > 0
        assert metrics["num_running"] == metrics["num_waiting"] == 0
        assert metrics["num_free_blocks"] == metrics["num_kv_blocks"]
        finished = sum(metrics[f"num_finished_{reason}"] for reason in ("stop", "length", "abort", "error"))
        assert finished == metrics["num_requests"] and metrics["num_finished_error"] == 0


def test_requests_leave_no_cycles(tiny):
    """What a request held is free when it ends: cycles would pile up until the collector comes."""
    with longcat.Engine(tiny) as engine:
        options = {"max_tokens": 5, "n": 2, "logprobs": 1, "stop": ["xyzzy"]}
        engine.generate("Once upon a time", **options)
        gc.collect()
        gc.disable()
        try:
            engine.generate(["Once upon a time"] * 20, **options)
            for chunk in engine.generate("Once upon a time", stream=True, **options):
                if chunk.token_ids:
                    break
            del chunk
            assert gc.collect() == 0
        finally:
            gc.enable()


def test_engines_opened_and_closed_leave_nothing(tiny):
    """100 of them, half with requests under way."""

    def open_and_close(under_way: bool):
        engine = longcat.Engine(tiny, kv_cache_memory=1 << 22)
        stream = engine.generate("Once upon a time", max_tokens=200, ignore_eos=True, stream=True)
        next(stream)
        if not under_way:
            stream.close()
        engine.close()

    def held():
        gc.collect()
        return rss_anon_kib(), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    for i in range(60):  # until the allocator holds what it will hold
        open_and_close(i % 2 == 0)
    memory, files, threads = held()
    for i in range(100):
        open_and_close(i % 2 == 0)
    memory_after, files_after, threads_after = held()
    print(
        f"RssAnon {memory} -> {memory_after} KiB, files {files} -> {files_after}, threads {threads} -> {threads_after}"
    )
    assert (files_after, threads_after) == (files, threads)
    assert memory_after < memory + max(memory // 20, 2048)
