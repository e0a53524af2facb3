"""Runs random requests on random engines, and compares each bit for bit with the same request run alone.

python bench/scripts/differential.py --seconds 1800          engines of the seeds 0, 1, 2, ...
python bench/scripts/differential.py --replay 4711           repeats one engine, and shrinks a case that differs

Processes run one after another, each with some engines. A process counts as a finding when it crashes, when its memory
grows, or when it makes no progress for --limit seconds. In the last case its threads' stacks are printed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import faulthandler
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support.differential import Differential, shared_tokenizers  # noqa: E402
from support.random_engines import Plan, random_plan  # noqa: E402
from support.sanitizers import sanitizer  # noqa: E402
from support.workload import rss_anon_kib  # noqa: E402

WARM_UP = 0.5  # share of a process's engines after which its memory must stay: by then each kind has run
GROWTH = 1.08  # largest growth of the private memory after that, as a factor
SHRINK_SECONDS = 120.0
TELL_EVERY_S = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="of the first engine")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run this engine alone, and make it smaller")
    parser.add_argument("--tries", type=int, default=5, help="runs of an engine that is replayed (default 5)")
    parser.add_argument("--engines", type=int, default=200, help="of a process (default 200)")
    parser.add_argument(
        "--limit", type=float, default=120, help="most seconds of an engine, or of a request alone (default 120)"
    )
    parser.add_argument("--first-finding", action="store_true", help="stop there")
    parser.add_argument("--worker", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    with tempfile.TemporaryDirectory() as folder:
        if args.replay is not None:
            return replay(args, Path(folder))
        return drive(args, Path(folder))


# --- a process of some engines -----------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> int:
    """Runs engines, and prints the result of each as one line of JSON."""
    tokenizers.Tokenizer = shared_tokenizers()
    differential = Differential(args.worker, lambda: faulthandler.dump_traceback_later(args.limit, exit=True))
    trim = ctypes.CDLL(None).malloc_trim
    ends = time.monotonic() + args.seconds
    for seed in range(args.seed, args.seed + args.engines):
        if time.monotonic() > ends:
            break
        say({"begin": seed})
        outcome = differential.run(random_plan(seed))
        gc.collect()
        trim(0)
        findings = [[finding.job_index, finding.text] for finding in outcome.findings]
        say({"seed": seed, "findings": findings, "events": outcome.events, "rss_kib": rss_anon_kib()})
    return 0


def say(line: dict) -> None:
    print(json.dumps(line), flush=True)


# --- the processes, one after another ----------------------------------------------------------------------------


class Run:
    """The results of all processes so far."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.events: Counter[str] = Counter()
        self.num_findings = 0
        self.begun = -1  # seed of the engine that is running
        self.rss_kib: list[int] = []  # of the process that is running
        self.told = self.start

    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def finding(self, seed: int, text: str) -> None:
        self.num_findings += 1
        print(f"{self.elapsed():.0f} s: FINDING in engine {seed} (--replay {seed}): {text}", flush=True)

    def take(self, line: dict) -> None:
        if "begin" in line:
            self.begun = line["begin"]
            return
        for job_index, text in line["findings"]:
            self.finding(line["seed"], text if job_index is None else f"request {job_index}: {text}")
        self.events.update(line["events"])
        self.rss_kib.append(line["rss_kib"])
        if time.monotonic() > self.told + TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self.told = time.monotonic()
        e = self.events
        print(
            f"{self.elapsed():.0f} s: {e['engines']} engines, {e['requests']} requests, {e['tokens compared']} tokens, "
            f"{self.num_findings} findings; RssAnon {self.rss_kib[-1:]} KiB",
            flush=True,
        )

    def check_memory(self) -> None:
        """Checks, after a process, that its memory did not grow in its second half.

        A sanitizer keeps freed memory and shadows of it, so its processes are not compared.
        """
        if sanitizer():
            return
        warm = self.rss_kib[int(len(self.rss_kib) * WARM_UP) :]
        if len(warm) < 10:
            return
        early, late = (sorted(part)[len(part) // 2] for part in (warm[: len(warm) // 2], warm[len(warm) // 2 :]))
        self.events["processes whose memory was compared"] += 1
        if late > GROWTH * early:
            self.finding(self.begun, f"the process's memory grew: RssAnon {early} KiB, then {late} KiB {self.rss_kib}")


def drive(args: argparse.Namespace, folder: Path) -> int:
    run, seed = Run(), args.seed
    while (left := args.seconds - run.elapsed()) > 0 and not (args.first_finding and run.num_findings):
        run.begun, run.rss_kib = seed - 1, []
        command = [sys.executable, __file__, "--worker", str(folder), "--seed", str(seed), "--seconds", str(left)]
        command += ["--engines", str(args.engines), "--limit", str(args.limit)]
        # One arena for malloc: free memory in the arenas of threads that have ended would count as growth.
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:
                run.take(json.loads(line))
                if args.first_finding and run.num_findings:
                    process.kill()
        if process.returncode and not (args.first_finding and run.num_findings):
            run.finding(run.begun, f"its process ended with {process.returncode}: crashed, or hung {args.limit:.0f} s")
        run.check_memory()
        if run.begun < seed:
            break  # the process did not reach its first engine
        seed = run.begun + 1
        run.tell()
    print(f"\n{run.elapsed():.0f} s, engines {args.seed} to {seed - 1}, {run.num_findings} findings")
    for name, count in sorted(run.events.items()):
        print(f"{count:>10}  {name}")
    return 1 if run.num_findings else 0


# --- one engine again --------------------------------------------------------------------------------------------


def replay(args: argparse.Namespace, folder: Path) -> int:
    faulthandler.dump_traceback_later(args.limit * args.tries + SHRINK_SECONDS, exit=True)
    differential, plan = Differential(folder), random_plan(args.replay)
    plan, findings = differential.shrink(plan, args.tries, SHRINK_SECONDS)
    show(plan)
    for finding in findings:
        print(f"FINDING: request {finding.job_index}: {finding.text}")
    if not findings:
        print(f"no difference in {args.tries} runs")
    return 1 if findings else 0


def show(plan: Plan) -> None:
    print(f"{plan.checkpoint}\n{plan.common}\n{plan.own}")
    print(f"{plan.num_blocks} blocks, {plan.num_swap_blocks} swap blocks, concurrency {plan.concurrency}")
    print(f"disturbances {plan.disturbances}, closed after {plan.closes_after_s} s")
    for index, job in enumerate(plan.jobs):
        print(f"request {index}: {job.prompt!r:.80} ({len(job.prompt)}) {dataclasses.replace(job, prompt='')}")


if __name__ == "__main__":
    sys.exit(main())
