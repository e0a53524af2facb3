"""Random requests against an engine, many at once: stop strings, several answers, aborts, leaving early.

Used by the test of 300 requests and by bench/scripts/soak.py for any number.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import longcat

BEGINNINGS = [
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. " * 3,
    "One day, a boy called Tom found a red ball under the big tree near his house. ",
    "The cat sat on the mat and looked at the rain. ",
    "",
]
WORDS = "the dog cat ball tree sun rain house red big little ran sat saw happy sad and then but with".split()
STOPS = ["dog", ".", "the", " a", "!", "happy", "xyzzy"]


def rss_anon_kib() -> int:
    """Private memory of this process [KiB]."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


@dataclass
class Job:
    """One request and what its caller does with it."""

    prompt: str
    sampling: dict[str, Any]
    leave_after: int | None  # stop reading after that many tokens
    abort_after: int | None  # Engine.abort after that many tokens


def random_job(rng: random.Random) -> Job:
    prompt = rng.choice(BEGINNINGS) + " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
    sampling: dict[str, Any] = {
        "max_tokens": rng.choice([1, 2, 5, 20, 60]),
        "seed": rng.randrange(1 << 30),
        "temperature": rng.choice([0, 0.7, 1.0]),
        "ignore_eos": rng.random() < 0.5,
        "n": rng.choice([1] * 6 + [2, 3]),
        "stop": rng.sample(STOPS, rng.choice([0, 0, 1, 3])),
    }
    if rng.random() < 0.1:
        sampling["logprobs"] = 2
    fate = rng.random()
    return Job(
        prompt,
        sampling,
        leave_after=rng.randint(0, 5) if fate < 0.05 else None,
        abort_after=rng.randint(1, 5) if 0.05 <= fate < 0.1 else None,
    )


@dataclass
class Report:
    """How the requests ended."""

    ends: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    checked_alone: int = 0


async def run_job(engine: longcat.Engine, job: Job, report: Report) -> list[list[int]] | None:
    """One request; None when it was ended early, else the tokens of its answers."""
    received: list[list[int]] = [[] for _ in range(job.sampling["n"])]
    texts, ends, count, output = [""] * len(received), [None] * len(received), 0, None
    chunks = engine.agenerate(job.prompt, **job.sampling)
    async for chunk in chunks:
        assert ends[chunk.index] is None, "a chunk after the end of its answer"
        received[chunk.index] += chunk.token_ids
        texts[chunk.index] += chunk.delta
        ends[chunk.index] = chunk.finish_reason
        count += len(chunk.token_ids)
        output = chunk.output or output
        if job.abort_after is not None and count >= job.abort_after:
            engine.abort(chunk.request_id)
        if job.leave_after is not None and count >= job.leave_after:
            await chunks.aclose()
            report.ends["left"] += 1
            return None
    report.num_tokens += count
    report.ends.update(ends)
    assert None not in ends and output is not None, "an answer without an end"
    for answer, tokens, text in zip(output.outputs, received, texts, strict=True):
        assert (answer.token_ids, answer.text) == (tokens, text), "the whole differs from its chunks"
        assert len(tokens) <= job.sampling["max_tokens"]
        assert answer.finish_reason in ("stop", "length") or job.abort_after is not None, answer
        assert answer.finish_reason != "length" or len(tokens) == job.sampling["max_tokens"]
    return received if job.abort_after is None else None


async def run_jobs(engine: longcat.Engine, num_jobs: int, concurrency: int, seed: int) -> Report:
    """Runs random jobs, so many at a time, and some of them again alone: the same tokens.

    Jobs are made when they are wanted and results kept as hashes: what is kept here would count as the engine's memory.
    """
    report, finished = Report(), {}
    todo = iter(range(num_jobs))

    def job(index: int) -> Job:
        return random_job(random.Random(seed * num_jobs + index))

    def digest(answers: list[list[int]] | None) -> int:
        return hash(repr(answers))

    async def worker():
        for index in todo:
            answers = await run_job(engine, job(index), report)
            if answers is not None and len(finished) < 20 + num_jobs // 50:
                finished[index] = digest(answers)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    for index, expected in finished.items():
        assert digest(await run_job(engine, job(index), Report())) == expected, "another answer alone"
        report.checked_alone += 1
    return report
