"""Prints the time of each kernel on a GPU, for decode steps of 1 and of 64 requests and for a prompt of 512 tokens.

python bench/scripts/trace.py [CHECKPOINT] [--layers 1] [--batches 1,64] [--prompt 512] [--steps 16] [--check]

Without CHECKPOINT the script makes a temporary one with random weights: the widths and experts of LongCat-Flash-Lite,
small tables, few layers (8 GB for one layer). The whole model has 14 layers: a step calls a layer's kernels 14 times.

torch.profiler sees the kernels of this process (CUPTI), also inside graphs. A decode step is the difference of two
runs, of 1 and of 1 + steps tokens, divided by the steps. Kernels that run in parallel add up to more than the wall
time, which is measured without the profiler. `--check` runs a tiny checkpoint on the emulated device without profiler,
and prints empty tables.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import longcat
from longcat.checkpoint.random_weights import preset_config, write_checkpoint

Events = list[tuple[str, float]]  # kernel or copy, time [us]
_EVENT_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")


def short_name(name: str) -> str:
    """A short name of a kernel: ours by its struct, CUTLASS's by kind and instruction or tile.

    CUTLASS's names may come mangled: some are too much for the demanglers.
    """
    if "describe_experts" in name:
        return "describe_experts"
    if "cutlass" in name:
        kind = "grouped" if re.search("GroupProblemShape|GemmGrouped|GroupedProblem", name) else "dense"
        atom = re.search(r"MMA_(\d+)x(\d+)x(\d+)_", name) or re.search(r"GemmShape<(\d+), (\d+), (\d+)>", name)
        return " ".join(
            part
            for part in (
                "cutlass",
                kind,
                "fp8" if "float_e4m3" in name else "",
                "x".join(atom.groups()) if atom else "",
            )
            if part
        )
    plain = re.sub(r"\(anonymous namespace\)::|longcat::|gpu::", "", name)
    ours = re.search(r"run_blocks<(.*)>(?:\(|$)", plain)
    return ours[1].strip() if ours else name[:60]


def read_events(trace: dict) -> Events:
    """The kernels and copies of a Chrome trace that torch.profiler exported.

    The blocks of a CUTLASS kernel tell which layer it is.
    """
    found = []
    for event in trace["traceEvents"]:
        if event.get("cat", "").lower() not in _EVENT_KINDS:
            continue
        name, grid = short_name(event["name"]), event.get("args", {}).get("grid")
        if grid and name.startswith("cutlass"):
            name += f", {math.prod(grid)} blocks"
        found.append((name, float(event["dur"])))
    return found


def per_step(long: Events, short: Events, steps: int) -> list[tuple[str, float, float]]:
    """(kernel, calls, us) of a step, the longest first: the difference of two traces, divided by the steps between."""
    calls: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for events, sign in ((long, 1), (short, -1)):
        for name, us in events:
            calls[name] += sign
            times[name] += sign * us
    rows = [(name, calls[name] / steps, times[name] / steps) for name in calls if calls[name] > 0]
    return sorted(rows, key=lambda row: -row[2])


def table(title: str, rows: list[tuple[str, float, float]], wall_us: float) -> str:
    """Prints the rows under a title, their sum, and the wall time."""
    total = sum(us for _, _, us in rows)
    lines = [f"\n{title}\n", "| kernel | calls | us | share |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {calls:g} | {us:.1f} | {us / total:.1%} |" for name, calls, us in rows if total > 0]
    lines.append(f"| all | {sum(calls for _, calls, _ in rows):g} | {total:.1f} | |")
    lines.append(f"| by the clock, without the profiler | | {wall_us:.1f} | |")
    return "\n".join(lines)


def profile_by_torch(run: Callable[[], object]) -> Events:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = read_events(json.loads(path.read_text(encoding="utf-8")))
    if not events:
        sys.exit("trace: torch.profiler saw no kernel of this process: CUPTI may not be allowed here")
    return events


def no_profiler(run: Callable[[], object]) -> Events:
    run()
    return []


class EmulatedEngine(longcat.Engine):
    def _open_core(self, options, progress, communicator):
        from longcat import _testing as testing

        return testing.open_engine(self.model, options, progress, communicator)


class Tracer:
    def __init__(self, engine: longcat.Engine, vocab_size: int, profile: Callable[[Callable[[], object]], Events]):
        self._engine = engine
        self._profile = profile
        self._vocab_size = vocab_size
        self._random = random.Random(1)

    def _prompt(self, length: int) -> list[int]:
        return [self._random.randrange(4, self._vocab_size) for _ in range(length)]

    def _generate(self, prompt: list[int], max_tokens: int, n: int = 1) -> tuple[float, int]:
        """Returns (seconds, steps)."""
        steps, start = self._engine.metrics()["num_steps"], time.perf_counter()
        self._engine.generate(
            prompt_token_ids=prompt, max_tokens=max_tokens, ignore_eos=True, n=n, temperature=0.7, top_p=0.95, seed=1
        )
        return time.perf_counter() - start, self._engine.metrics()["num_steps"] - steps

    def decode(self, batch: int, context: int, steps: int) -> str:
        prompt = self._prompt(context)
        self._generate(prompt, 1 + steps, batch)  # makes the graphs, and the prefix that later requests find
        (short_seconds, short_steps), (long_seconds, long_steps) = (
            self._generate(prompt, tokens, batch) for tokens in (1, 1 + steps)
        )
        between = long_steps - short_steps
        short, long = (
            self._profile(lambda tokens=tokens: self._generate(prompt, tokens, batch)) for tokens in (1, 1 + steps)
        )
        return table(
            f"a decode step of {batch}, context {context}",
            per_step(long, short, between),
            1e6 * (long_seconds - short_seconds) / between,
        )

    def prefill(self, length: int) -> str:
        self._generate(self._prompt(length), 1)
        seconds, _ = self._generate(self._prompt(length), 1)
        prompt = self._prompt(length)
        events = self._profile(lambda: self._generate(prompt, 1))
        return table(f"a prompt of {length}, and one sampled token", per_step(events, [], 1), 1e6 * seconds)


def tables(args: argparse.Namespace, checkpoint: str, vocab_size: int) -> Iterable[str]:
    context = 40 if args.check else args.prompt
    batches = [1, 3] if args.check else args.batches
    options = {"max_num_seqs": max(batches), "max_model_len": context + args.steps + 65}
    if args.check:
        engine = EmulatedEngine(checkpoint, device="cuda-emulated", kv_cache_memory=1 << 22, **options)
    else:  # the profiler needs memory too
        engine = longcat.Engine(checkpoint, device="cuda", gpu_memory_utilization=0.8, **options)
    with engine:
        tracer = Tracer(engine, vocab_size, no_profiler if args.check else profile_by_torch)
        for batch in batches:
            yield tracer.decode(batch, context, args.steps)
        yield tracer.prefill(context)


def check_torch() -> None:
    try:
        import torch
    except ImportError:
        sys.exit("trace: torch is not installed here, and its profiler is what sees the kernels: pip install torch")
    if not torch.cuda.is_available():
        sys.exit("trace: torch finds no GPU here: give --check to see that the script works")
    # Once before the engine makes its graphs, so that the profiler sees them.
    profile_by_torch(lambda: torch.zeros(1000, device="cuda").add_(1))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 64])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(arguments)
    if min(args.steps, args.layers, args.prompt, *args.batches) < 1:
        parser.error("numbers are 1 or more")
    if not args.check:
        check_torch()
    try:
        with tempfile.TemporaryDirectory(prefix="longcat-trace-") as folder:
            checkpoint = args.checkpoint
            if not checkpoint:
                checkpoint = str(Path(folder, "model"))
                fields = {} if args.check else {"num_layers": args.layers, "ngram_vocab_size_ratio": 1}
                write_checkpoint(checkpoint, preset_config("tiny" if args.check else "lite", fields))
            config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
            layers = config.get("num_layers", config.get("num_hidden_layers"))
            print(f"{layers} layers", "on the emulated device: no kernel is timed" if args.check else "")
            for text in tables(args, checkpoint, config["vocab_size"]):
                print(text, flush=True)
    except longcat.Error as error:
        sys.exit(f"trace: {error}")


if __name__ == "__main__":
    main()
