"""Each request of a random engine against the same request alone in a fresh, roomy engine: the same bits.

`Differential.run` lives one plan through and returns what was met, or the differences; `shrink` makes a plan with a
difference smaller. bench/scripts/differential.py runs thousands of plans.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import longcat
import tokenizers

from support.random_engines import TRAINED, Plan
from support.workload import Job, Reading, read_job

MASK_TIMEOUT_S = 300.0
ENDS_WITHIN_S = 20.0  # threads and files of a closed engine
FORWARD_IDS = [5, 9, 2, 5, 7, 1, 1, 8] * 9


@dataclass
class Finding:
    """What is wrong. `job_index` is None when it concerns the engine as a whole.

    Args:
        num_tokens: tokens of the request up to the first that differs; None when no token does.
    """

    job_index: int | None
    text: str
    num_tokens: int | None = None


@dataclass
class Outcome:
    """What one engine's life brought."""

    findings: list[Finding] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)


def first_difference(reading: Reading, alone: longcat.RequestOutput) -> tuple[str, int | None] | None:
    """What differs first from the run alone, and Finding.num_tokens; None when all is the same.

    Of a completion that ended early, its beginning is compared.
    """
    for index, (found, expected) in enumerate(zip(reading.completions, alone.outputs, strict=True)):
        where = f"completion {index}" if len(alone.outputs) > 1 else "the completion"
        is_whole = found.finish_reason not in (None, "abort")
        num_compared = max(len(found.token_ids), len(expected.token_ids) if is_whole else 0)
        for i in range(num_compared):
            mine, theirs = (_or_none(ids, i) for ids in (found.token_ids, expected.token_ids))
            if mine != theirs:
                return f"token {i} of {where}: {mine}, alone {theirs}", i + 1
        for i, (mine, theirs) in enumerate(zip(found.logprobs, expected.logprobs or [], strict=False)):
            if mine != theirs:
                return f"log-probabilities of token {i} of {where}: {mine}, alone {theirs}", i + 1
        if is_whole:
            whole = reading.output.outputs[index] if reading.output else found
            for name in ("finish_reason", "text", "stop_reason", "error", "logprobs", "cumulative_logprob"):
                mine, theirs = getattr(whole, name, None), getattr(expected, name)
                if hasattr(whole, name) and (mine or None) != (theirs or None):
                    return f"{name} of {where}: {mine!r}, alone {theirs!r}", None
    ended_early = any(completion.finish_reason in (None, "abort") for completion in reading.completions)
    if reading.output and not ended_early and reading.output.prompt_logprobs != alone.prompt_logprobs:
        return f"prompt log-probabilities: {reading.output.prompt_logprobs}, alone {alone.prompt_logprobs}", None
    return None


def _or_none(ids: list[int], index: int) -> int | None:
    return ids[index] if index < len(ids) else None


def shared_tokenizers() -> SimpleNamespace:
    """A stand-in for tokenizers.Tokenizer that reads each tokenizer.json once.

    The library keeps 1 to 3 KB for ever of each of its objects that has encoded a text. With the stand-in a process has
    one such object for each file, so its memory shows what engines keep. Each engine still makes our own Tokenizer.
    """
    library = tokenizers.Tokenizer
    return SimpleNamespace(from_buffer=functools.cache(library.from_buffer), from_str=functools.cache(library.from_str))


class Differential:
    """Runs plans. What it keeps from one to the next are checkpoints in `root` and compiled grammars.

    Args:
        root: folder for the random checkpoints.
        on_progress: called when an engine or a request alone begins.
    """

    def __init__(self, root: Path, on_progress: Callable[[], None] = lambda: None):
        self._root = root
        self._on_progress = on_progress
        on_progress()  # may begin a thread as well
        self._grammars: dict[tuple[int, str], Any] = {}  # by vocabulary and form; each takes a MB
        with longcat.Engine(TRAINED, num_threads=1) as engine:  # libraries begin threads that stay
            engine.generate("Once", max_tokens=1, structured_outputs={"regex": "a"})
        self._num_threads, self._num_files = _num_threads(), _num_files()

    # --- engines -----------------------------------------------------------------------------------------------

    def open_alone(self, plan: Plan) -> longcat.Engine:
        """A roomy engine for one request, with the plan's checkpoint and formats."""
        self._on_progress()
        return longcat.Engine(
            plan.checkpoint.folder(self._root), **plan.common, max_num_seqs=1, num_threads=1,
            max_num_batched_tokens=1024, enable_prefix_caching=False, mask_timeout=MASK_TIMEOUT_S,
        )  # fmt: skip

    def open(self, plan: Plan) -> longcat.Engine:
        """The plan's engine."""
        with self.open_alone(plan) as alone:
            info = alone.info()
        block_bytes = info["kv_cache_bytes"] // (info["num_kv_blocks"] + 1)
        swap_memory = "auto" if plan.num_swap_blocks is None else plan.num_swap_blocks * block_bytes
        return longcat.Engine(
            plan.checkpoint.folder(self._root), **plan.common, **plan.own, swap_memory=swap_memory,
            kv_cache_memory=(plan.num_blocks + 1) * block_bytes, mask_timeout=MASK_TIMEOUT_S,
        )  # fmt: skip

    def alone(self, plan: Plan, job: Job) -> longcat.RequestOutput:
        """The job's request alone, in an engine of its own."""
        with self.open_alone(plan) as engine:
            sampling = dict(job.sampling)
            if form := sampling.get("structured_outputs"):  # compiling is most of the time of a short request
                key = engine.info()["vocab_size"], repr(form)
                if key not in self._grammars:
                    self._grammars[key] = engine.compile_grammar(form)
                sampling["structured_outputs"] = self._grammars[key]
            return engine.generate([job.prompt], use_tqdm=False, **sampling)[0]

    # --- one plan ----------------------------------------------------------------------------------------------

    def run(self, plan: Plan) -> Outcome:
        """Lives a plan through."""
        outcome = Outcome()
        engine = self.open(plan)
        try:
            readings = asyncio.run(self._live(engine, plan, outcome))
            if plan.closes_after_s is None:
                self._check_idle(engine, outcome)
        finally:
            engine.close()
        del engine
        self._num_threads = _check_gone("threads", _num_threads, self._num_threads, outcome)
        self._num_files = _check_gone("open files", _num_files, self._num_files, outcome)
        self._compare(plan, readings, outcome)
        _count(plan, readings, outcome.events)
        return outcome

    async def _live(self, engine: longcat.Engine, plan: Plan, outcome: Outcome) -> list[Reading | None]:
        """What the caller of each job read; None where the engine was closed under it."""
        readings: list[Reading | None] = [None] * len(plan.jobs)
        resume = asyncio.Event()
        todo = iter([index for index, job in enumerate(plan.jobs) if job.fate != "stall"])

        async def read(index: int) -> None:
            try:
                readings[index] = await read_job(engine, plan.jobs[index], resume)
            except longcat.Error as error:
                if plan.closes_after_s is None or "closed" not in str(error):
                    outcome.findings.append(Finding(index, traceback.format_exc()))
                outcome.events["cut off by close()"] += 1
            except Exception:
                outcome.findings.append(Finding(index, traceback.format_exc()))

        async def worker() -> None:
            for index in todo:
                await read(index)

        others = [asyncio.create_task(read(index)) for index, job in enumerate(plan.jobs) if job.fate == "stall"]
        others.append(asyncio.create_task(self._disturb(engine, plan, outcome)))
        if plan.closes_after_s is not None:
            others.append(asyncio.create_task(_close_later(engine, plan.closes_after_s)))
        await asyncio.gather(*(worker() for _ in range(plan.concurrency)))
        resume.set()
        await asyncio.gather(*others)
        return readings

    async def _disturb(self, engine: longcat.Engine, plan: Plan, outcome: Outcome) -> None:
        rng = random.Random(plan.seed)
        try:
            for what in plan.disturbances:
                await asyncio.sleep(rng.uniform(0, 0.01))
                await asyncio.to_thread(self._disturb_once, engine, plan, what, rng.random(), outcome)
        except longcat.Error as error:
            if plan.closes_after_s is None or "closed" not in str(error):
                outcome.findings.append(Finding(None, traceback.format_exc()))

    def _disturb_once(self, engine: longcat.Engine, plan: Plan, what: str, share: float, outcome: Outcome) -> None:
        if what == "preempt":
            newest = engine.metrics()["num_requests"]
            request_id = max(0, newest - 1 - int(share * 20))
            outcome.events["preempted by hand"] += engine._core.preempt(request_id, share < 0.5)
        elif what == "reset":
            engine.reset_prefix_cache()
        elif what == "metrics":
            engine.metrics(), engine.info(), engine.failure()
        else:
            ids = FORWARD_IDS[: 1 + int(share * len(FORWARD_IDS))]
            try:
                found = engine.forward(ids)
            except longcat.OutOfMemoryError:
                outcome.events["forward without room"] += 1
                return
            with self.open_alone(plan) as alone:
                if alone.forward(ids).tobytes() != found.tobytes():
                    outcome.findings.append(Finding(None, f"forward of {len(ids)} tokens differs"))
            outcome.events["forward compared"] += 1

    def _check_idle(self, engine: longcat.Engine, outcome: Outcome) -> None:
        """After the last request: nothing runs, nothing waits, no block is held."""
        metrics = engine.metrics()
        finished = sum(metrics[f"num_finished_{reason}"] for reason in ("stop", "length", "abort", "error"))
        if metrics["num_free_blocks"] != metrics["num_kv_blocks"] or metrics["num_running"] or metrics["num_waiting"]:
            outcome.findings.append(Finding(None, f"the idle engine holds something: {metrics}"))
        if finished != metrics["num_requests"] or engine._requests:
            outcome.findings.append(Finding(None, f"requests are lost: {metrics}, {engine._requests}"))
        for name in ("num_swaps", "num_recomputes", "num_draft_tokens", "num_accepted_tokens", "prefix_cache_hits",
                     "num_steps", "num_generated_tokens"):  # fmt: skip
            outcome.events[name] += metrics[name]

    def _compare(self, plan: Plan, readings: list[Reading | None], outcome: Outcome) -> None:
        for index, reading in enumerate(readings):
            if reading is None:
                continue
            if difference := first_difference(reading, self.alone(plan, plan.jobs[index])):
                outcome.findings.append(Finding(index, *difference))
            is_whole = reading.output is not None and "abort" not in [c.finish_reason for c in reading.completions]
            outcome.events["requests compared whole" if is_whole else "requests compared in part"] += 1
            outcome.events["tokens compared"] += reading.count

    # --- smaller plans -----------------------------------------------------------------------------------------

    def fails(self, plan: Plan, tries: int) -> list[Finding]:
        """The findings of the first of some runs that has any: threads take turns in another way each time."""
        for _ in range(tries):
            if findings := self.run(plan).findings:
                return findings
        return []

    def shrink(self, plan: Plan, tries: int, seconds: float) -> tuple[Plan, list[Finding]]:
        """A plan with fewer requests and disturbances that still fails, and its findings; none: it does not any more.

        The first request that differs is cut behind the token that does.
        """
        ends = time.monotonic() + seconds
        findings = self.fails(plan, tries)
        size = max(1, len(plan.jobs) // 2)
        while findings and size and time.monotonic() < ends:
            for begin in range(0, len(plan.jobs), size):
                smaller = dataclasses.replace(plan, jobs=plan.jobs[:begin] + plan.jobs[begin + size :])
                if smaller.jobs and time.monotonic() < ends and (found := self.fails(smaller, tries)):
                    plan, findings = smaller, found
                    break
            else:
                size //= 2
        for smaller_of in (_undisturbed, _cut):
            smaller = smaller_of(plan, findings)
            if findings and smaller != plan and (found := self.fails(smaller, tries)):
                plan, findings = smaller, found
        return plan, findings


def _undisturbed(plan: Plan, findings: list[Finding]) -> Plan:
    return dataclasses.replace(plan, disturbances=[])


def _cut(plan: Plan, findings: list[Finding]) -> Plan:
    """The plan with the first request that differs cut behind the token that does."""
    for finding in findings:
        if finding.job_index is not None and finding.num_tokens is not None:
            jobs = list(plan.jobs)
            sampling = jobs[finding.job_index].sampling
            most = {"max_tokens": finding.num_tokens}
            most |= {"min_tokens": min(sampling["min_tokens"], finding.num_tokens)} if "min_tokens" in sampling else {}
            jobs[finding.job_index] = dataclasses.replace(jobs[finding.job_index], sampling=sampling | most)
            return dataclasses.replace(plan, jobs=jobs)
    return plan


async def _close_later(engine: longcat.Engine, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await asyncio.to_thread(engine.close)


def _num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _check_gone(what: str, count: Callable[[], int], before: int, outcome: Outcome) -> int:
    """Waits until there are no more than `before` of something; returns how many there are."""
    ends = time.monotonic() + ENDS_WITHIN_S
    while (after := count()) > before:
        if time.monotonic() > ends:
            names = [thread.name for thread in threading.enumerate()]
            outcome.findings.append(Finding(None, f"{after} {what}, {before} before the engine; Python's: {names}"))
            break
        time.sleep(0.001)
    return after


def _count(plan: Plan, readings: list[Reading | None], events: Counter[str]) -> None:
    """What this plan was made of, and how its requests ended."""
    events["engines"] += 1
    events["engines closed in the middle"] += plan.closes_after_s is not None
    for name, value in (
        ("weights", plan.checkpoint.weights),
        ("shape", plan.checkpoint.shape),
        ("kv_cache_dtype", plan.common["kv_cache_dtype"]),
        ("index_cache_dtype", plan.common.get("index_cache_dtype", "none")),
        ("speculative", (plan.own["speculative"] or {}).get("method", "none")),
        ("num_threads", plan.own["num_threads"]),
    ):
        events[f"engines: {name} {value}"] += 1
    for job, reading in zip(plan.jobs, readings, strict=True):
        if reading is None:
            continue
        events["requests"] += 1
        events[f"fate {job.fate}" + (", met" if reading.met_fate else "")] += 1
        events["requests by generate()"] += job.is_blocking
        for name, value in job.sampling.items():
            if name not in ("max_tokens", "seed", "temperature"):
                events[f"with {name}"] += 1
            if name == "structured_outputs":
                events[f"with structured_outputs {next(iter(value))}"] += 1
        for completion in reading.completions:
            events[f"finish reason {completion.finish_reason}"] += 1
