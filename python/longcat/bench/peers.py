"""Compares an engine with llama.cpp's `llama-bench`: in turn, with the same threads and the same lengths.

Each program runs in a process of its own and loads its weights there, so that neither competes with the other for
memory or cores. The order changes from round to round. Terms are llama-bench's: ppN is a prompt of N tokens in tok/s,
tgN are N tokens generated one by one after a prompt of one token.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longcat._core import Error
from longcat.bench.in_process import random_prompts
from longcat.engine.engine import Engine
from longcat.support.child_process import run_program
from longcat.support.json_types import JsonObject
from longcat.support.text import count

_GGUF_MAGIC = b"GGUF"

_OURS = """
import json, sys
from longcat.bench.peers import engine_rates
print(json.dumps(engine_rates(sys.argv[1], json.loads(sys.argv[2]), *map(int, sys.argv[3:]))))
"""


@dataclass
class Rates:
    """One program's tokens/s in each round, and what it says of itself."""

    prompt: list[float] = field(default_factory=list)
    generate: list[float] = field(default_factory=list)
    about: str = ""

    def add(self, prompt: float, generate: float) -> None:
        self.prompt.append(prompt)
        self.generate.append(generate)


def compare(
    model: str | os.PathLike[str],
    options: Mapping[str, object],
    llama_bench: str | os.PathLike[str],
    gguf: str | os.PathLike[str],
    *,
    num_threads: int,
    input_len: int,
    output_len: int,
    rounds: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> tuple[Rates, Rates]:
    """Runs both programs in turn, on the CPU.

    Args:
        model: folder of a checkpoint for the engine.
        options: of the engine, which runs on the CPU.
        llama_bench: the program.
        gguf: the same model for it.
        num_threads: of each program.
        input_len, output_len: [tokens] of the prompt, and generated.
        rounds: in each, both programs run once.
        seed: of the engine's prompts.
        progress: called after each run.
    Returns:
        The rates of the engine and of llama.cpp.
    Raises:
        longcat.Error: a file is missing or of another kind, or a run failed.
    """
    check_files(llama_bench, gguf)
    ours, theirs = Rates(), Rates()
    given = json.dumps({**options, "device": "cpu", "num_threads": num_threads})  # as `-ngl 0` there

    def run_ours() -> None:
        output = run_program("bench", _OURS, os.fspath(model), given, *map(str, (input_len, output_len, seed)))
        ours.add(*json.loads(output.splitlines()[-1]))

    def run_theirs() -> None:
        prompt, generate, theirs.about = llama_bench_rates(llama_bench, gguf, num_threads, input_len, output_len)
        theirs.add(prompt, generate)

    for i in range(rounds):
        for run in (run_ours, run_theirs) if i % 2 == 0 else (run_theirs, run_ours):
            run()
            progress()
    return ours, theirs


def engine_rates(
    model: str, options: Mapping[str, Any], input_len: int, output_len: int, seed: int
) -> tuple[float, float]:
    """Tokens/s of a new engine in this process: of a prompt, and generated. Each is run once before, untimed.

    Args:
        model: folder of a checkpoint.
        options: of the engine.
        input_len, output_len: [tokens].
        seed: of the prompts.
    """
    with Engine(model, **{**options, "max_num_seqs": 1, "enable_prefix_caching": False}) as engine:
        prompts = random_prompts(engine, 2, input_len, seed)
        for ids in prompts:
            start = time.perf_counter()
            engine.generate(prompt_token_ids=ids, max_tokens=1, temperature=0, ignore_eos=True, stop=[])
            prompt_seconds = time.perf_counter() - start
        generate_seconds = 0.0
        for ids, length in zip(random_prompts(engine, 2, 1, seed), (1, output_len), strict=True):
            first = None
            for _ in engine.generate(
                prompt_token_ids=ids, max_tokens=length + 1, temperature=0, ignore_eos=True, stop=[], stream=True
            ):
                first = first or time.perf_counter()  # the prompt's own token
            generate_seconds = time.perf_counter() - (first or 0)
    return input_len / prompt_seconds, output_len / generate_seconds


def llama_bench_rates(
    llama_bench: str | os.PathLike[str],
    gguf: str | os.PathLike[str],
    num_threads: int,
    input_len: int,
    output_len: int,
) -> tuple[float, float, str]:
    """Tokens/s of one run of llama-bench: of a prompt, and generated; and its build and model in words.

    Raises:
        longcat.Error: the run failed, or its output is not llama-bench's JSON.
    """
    command = [os.fspath(llama_bench), "-m", os.fspath(gguf), "-p", str(input_len), "-n", str(output_len)]
    command += ["-t", str(num_threads), "-ngl", "0", "-r", "1", "-o", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise Error(f"[bench] {command[0]} does not start: {error.strerror or error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise Error(f"[bench] {' '.join(command)}: {how}: {last}")
    try:
        tests: list[JsonObject] = json.loads(done.stdout)
        rates = {(int(t["n_prompt"]), int(t["n_gen"])): float(t["avg_ts"]) for t in tests}
        build, name, size = (tests[0].get(key) for key in ("build_commit", "model_type", "model_size"))
        found = rates[input_len, 0], rates[0, output_len]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Error(
            f"[bench] {command[0]} printed {done.stdout[:60]!r}; expected llama-bench's JSON of the tests "
            f"pp{input_len} and tg{output_len}"
        ) from None
    return *found, f"llama.cpp {build}, {name}, {size} bytes"


def check_files(llama_bench: str | os.PathLike[str], gguf: str | os.PathLike[str]) -> None:
    """Checks both paths before anything runs.

    Raises:
        longcat.Error: a file is missing, the program cannot be executed, or the model is no GGUF file.
    """
    program, model = Path(llama_bench), Path(gguf)
    if not program.is_file():
        raise Error(
            f"[bench] --llama-bench {program} is no file; expected the program llama-bench of a llama.cpp build"
        )
    if not os.access(program, os.X_OK):
        raise Error(f"[bench] --llama-bench {program} is not executable: run chmod +x on it")
    try:
        with model.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise Error(f"[bench] --gguf {model} cannot be read: {error.strerror or error}") from None
    if magic != _GGUF_MAGIC:
        raise Error(
            f"[bench] --gguf {model} begins with {magic!r}; expected a GGUF file, which begins with {_GGUF_MAGIC!r}"
        )


def summary(ours: Rates, theirs: Rates, input_len: int, output_len: int) -> list[JsonObject]:
    """Medians and ranges per test: {"test", "longcat", "llama.cpp", "ratio", and each range as [least, most]}."""
    rows: list[JsonObject] = []
    for test, name in ((f"pp{input_len}", "prompt"), (f"tg{output_len}", "generate")):
        a, b = getattr(ours, name), getattr(theirs, name)
        medians = statistics.median(a), statistics.median(b)
        rows.append(
            {
                "test": test,
                "longcat": medians[0],
                "llama.cpp": medians[1],
                "ratio": medians[0] / medians[1],
                "longcat_range": [min(a), max(a)],
                "llama.cpp_range": [min(b), max(b)],
            }
        )
    return rows


def table(rows: list[JsonObject], rounds: int) -> str:
    """The rows as Markdown, medians with their ranges."""
    lines = [
        f"tokens/s, median of {count(rounds, 'round')} (least to most):",
        "",
        "| test | longcat | llama.cpp | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [_cell(row[name], row[f"{name}_range"]) for name in ("longcat", "llama.cpp")]
        lines.append(f"| {row['test']} | {cells[0]} | {cells[1]} | {row['ratio']:.2f} |")
    return "\n".join(lines)


def _cell(median: Any, extremes: Any) -> str:
    return f"{median:.4g} ({extremes[0]:.4g} to {extremes[1]:.4g})"
