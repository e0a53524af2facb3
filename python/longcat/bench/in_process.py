"""Measures an engine in this process: one batch at a time, or all prompts at once. Figures have vLLM's names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from longcat.bench.load_generator import percentile
from longcat.engine.engine import Engine
from longcat.support.json_types import JsonObject

PERCENTILES = (10, 25, 50, 75, 90, 99)


def latency(
    engine: Engine,
    *,
    batch_size: int,
    input_len: int,
    output_len: int,
    num_iters: int,
    num_iters_warmup: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> JsonObject:
    """Times one batch of random prompts repeatedly.

    Args:
        engine: without prefix caching, because cached prompts would cost nothing after the first time.
        batch_size: number of prompts.
        input_len, output_len: [tokens] per prompt.
        num_iters, num_iters_warmup: timed iterations, and untimed ones before them.
        progress: called after each iteration.
    Returns:
        avg_latency, latencies and percentiles [s].
    """
    prompts = random_prompts(engine, batch_size, input_len, seed)
    latencies = []
    for iteration in range(num_iters_warmup + num_iters):
        start = time.perf_counter()
        _generate(engine, prompts, output_len)
        if iteration >= num_iters_warmup:
            latencies.append(time.perf_counter() - start)
        progress()
    return {
        "avg_latency": sum(latencies) / len(latencies),
        "latencies": latencies,
        "percentiles": {str(p): percentile(sorted(latencies), p) for p in PERCENTILES},
    }


def throughput(engine: Engine, *, num_prompts: int, input_len: int, output_len: int, seed: int = 0) -> dict[str, float]:
    """Times random prompts that are all submitted at the start.

    Args:
        num_prompts: number of prompts with input_len tokens, each completed with output_len tokens.
    Returns:
        elapsed_time [s], num_requests, total_num_tokens, requests_per_second, tokens_per_second (with prompts) and
        output_tokens_per_second.
    """
    prompts = random_prompts(engine, num_prompts, input_len, seed)
    _generate(engine, prompts[:1], 1)  # starts threads and reads pages of the checkpoint
    start = time.perf_counter()
    _generate(engine, prompts, output_len)
    elapsed = time.perf_counter() - start
    total = num_prompts * (input_len + output_len)
    return {
        "elapsed_time": elapsed,
        "num_requests": num_prompts,
        "total_num_tokens": total,
        "requests_per_second": num_prompts / elapsed,
        "tokens_per_second": total / elapsed,
        "output_tokens_per_second": num_prompts * output_len / elapsed,
    }


def random_prompts(engine: Engine, count: int, input_len: int, seed: int) -> list[list[int]]:
    """`count` prompts of `input_len` random token ids."""
    rng, vocab_size = random.Random(seed), engine.info()["vocab_size"]
    return [[rng.randrange(vocab_size) for _ in range(input_len)] for _ in range(count)]


def _generate(engine: Engine, prompts: list[list[int]], output_len: int) -> None:
    engine.generate(prompt_token_ids=prompts, max_tokens=output_len, temperature=0, ignore_eos=True, stop=[])
