"""Requests as callers make them: read to the end, aborted, left, or not read for a while.

Used by the test of 300 requests, by bench/scripts/soak.py for any number, and by support.differential.
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
RETRY_S = 0.002  # when other callers fill the queue


def rss_anon_kib() -> int:
    """Private memory of this process [KiB]."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))


@dataclass
class Job:
    """One request and what its caller does with it.

    Args:
        sampling: keywords of SamplingParams.
        fate: how its completion is read. "read": to the end. "abort", "leave": until `after` tokens have come.
            "abort soon": ended `delay_s` after it was made. "stall": reading pauses at `after` tokens until all other
            requests have ended.
        is_blocking: it is made by `generate` on a thread of its own, not by `agenerate`.
    """

    prompt: str | list[int]
    sampling: dict[str, Any]
    fate: str = "read"
    after: int = 0
    delay_s: float = 0.0
    is_blocking: bool = False

    @property
    def n(self) -> int:
        return self.sampling.get("n", 1)


def random_job(rng: random.Random) -> Job:
    """One of a few kinds of text requests, for a checkpoint that writes stories."""
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
    if fate < 0.05:
        return Job(prompt, sampling, "leave", after=rng.randint(0, 5))
    if fate < 0.1:
        return Job(prompt, sampling, "abort", after=rng.randint(1, 5))
    return Job(prompt, sampling)


@dataclass
class Completion:
    """One of the n completions, put together from its chunks."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None


class Reading:
    """What the caller of a job has read. The chunks are checked against each other and the whole."""

    def __init__(self, job: Job, max_model_len: int):
        self.job = job
        self._max_model_len = max_model_len
        self.completions = [Completion() for _ in range(job.n)]
        self.output: longcat.RequestOutput | None = None  # None when the request ended early
        self.count = 0
        self.met_fate = False

    def take(self, chunk: longcat.StreamChunk) -> None:
        completion = self.completions[chunk.index]
        assert completion.finish_reason is None, "a chunk after the end of its completion"
        completion.token_ids += chunk.token_ids
        completion.text += chunk.delta
        completion.logprobs += chunk.logprobs or []
        completion.finish_reason = chunk.finish_reason
        self.count += len(chunk.token_ids)
        self.output = chunk.output or self.output

    def meets_fate(self) -> bool:
        """Whether the caller has now read as much as it wants to. True once."""
        if self.met_fate or self.job.fate not in ("abort", "leave", "stall") or self.count < self.job.after:
            return False
        self.met_fate = True
        return True

    def check_whole(self) -> None:
        """After the last chunk."""
        assert self.output is not None, "a request without an end"
        most = min(self.job.sampling["max_tokens"], self._max_model_len - len(self.output.prompt_token_ids))
        for whole, read in zip(self.output.outputs, self.completions, strict=True):
            assert whole.token_ids == read.token_ids and whole.text == read.text, "the whole differs from its chunks"
            assert (whole.logprobs or []) == read.logprobs, "the log-probabilities differ from those of the chunks"
            assert whole.finish_reason == read.finish_reason is not None, "a completion without an end"
            assert len(read.token_ids) <= most and (whole.finish_reason != "length" or len(read.token_ids) == most)
            assert whole.finish_reason != "abort" or self.job.fate.startswith("abort"), whole


async def read_job(engine: longcat.Engine, job: Job, resume: asyncio.Event | None = None) -> Reading:
    """Makes one request and reads it as its caller does. A full queue is asked again.

    Args:
        resume: set when a job of fate "stall" is to be read on.
    Raises:
        longcat.Error: the engine was closed.
    """
    reading = Reading(job, engine.info()["max_model_len"])
    if job.is_blocking:
        return await asyncio.to_thread(_read_blocking, engine, reading)
    while True:
        try:
            return await _read(engine, reading, resume)
        except longcat.QueueFullError:
            await asyncio.sleep(RETRY_S)


async def _read(engine: longcat.Engine, reading: Reading, resume: asyncio.Event | None) -> Reading:
    job, loop, name = reading.job, asyncio.get_running_loop(), None
    if job.fate == "abort soon":
        name = f"request {id(reading)}"
        loop.call_later(job.delay_s, _abort, engine, name)
    chunks = engine.agenerate(job.prompt, request_id=name, **job.sampling)
    async for chunk in chunks:
        reading.take(chunk)
        if not reading.meets_fate():
            continue
        if job.fate == "leave":
            await chunks.aclose()
            reading.output = None
            return reading
        if job.fate == "abort":
            engine.abort(chunk.request_id)
        elif resume is not None:
            await resume.wait()
    reading.check_whole()
    return reading


def _read_blocking(engine: longcat.Engine, reading: Reading) -> Reading:
    job = reading.job
    with engine.generate([job.prompt], stream=True, **job.sampling) as chunks:
        for chunk in chunks:
            reading.take(chunk)
            if not reading.meets_fate():
                continue
            if job.fate == "leave":
                reading.output = None
                return reading
            if job.fate == "abort":
                engine.abort(chunk.request_id)
    reading.check_whole()
    return reading


def _abort(engine: longcat.Engine, name: str) -> None:
    engine.abort(name)


@dataclass
class Report:
    """How the requests ended."""

    ends: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    checked_alone: int = 0

    def add(self, reading: Reading) -> None:
        self.num_tokens += reading.count
        if reading.output is None:
            self.ends["left"] += 1
        else:
            self.ends.update(completion.finish_reason for completion in reading.completions)


async def run_jobs(engine: longcat.Engine, num_jobs: int, concurrency: int, seed: int) -> Report:
    """Runs random jobs, `concurrency` at a time, and some of them again alone: the same tokens.

    Jobs are made when they are wanted and results kept as hashes: what is kept here would count as the engine's memory.
    """
    report, finished = Report(), {}
    todo = iter(range(num_jobs))

    def job(index: int) -> Job:
        return random_job(random.Random(seed * num_jobs + index))

    def digest(reading: Reading) -> int:
        return hash(repr([completion.token_ids for completion in reading.completions]))

    async def worker():
        for index in todo:
            reading = await read_job(engine, job(index))
            report.add(reading)
            if reading.job.fate == "read" and len(finished) < 20 + num_jobs // 50:
                finished[index] = digest(reading)

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    for index, expected in finished.items():
        assert digest(await read_job(engine, job(index))) == expected, "another completion alone"
        report.checked_alone += 1
    return report
