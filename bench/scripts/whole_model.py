"""Measures a whole checkpoint on the CPU: loading, prompts, decoding, a long context, memory and disk reads.

    python bench/scripts/whole_model.py CHECKPOINT [--batches 1,4,8] [--prompts 512,4096] [--context 32768]
        [--tokens 64] [--rounds 3] [--ballast GB] [--kv-cache-dtype auto] [--num-threads N]

For a model that fills the machine's memory, such as

    longcat make-checkpoint build/lite --preset lite --quant int4 --sparse-tables

--ballast: another process locks so many GB (10^9 bytes) of memory, so that a machine of 24 GB acts as a smaller one.
Locking needs root or `ulimit -l unlimited`.

"cold": the checkpoint's pages were dropped from the page cache, which only works for files that no other process has
mapped. Each of both loads is a process of its own; the second goes on to all other rows. Rates are medians of the
rounds. Prompts are random, so each token reads 12 random rows of the N-gram tables. "disk" is what the process read
from the disk during the row, and "faults" are its waits for the disk.
The plan counts the whole latent cache, which the run does not fill.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import longcat
from longcat.planning.plan import plan

GB = 10**9


def status_bytes(name: str) -> int:
    """A size of /proc/self/status, such as VmHWM [bytes]."""
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def disk_state() -> tuple[int, int]:
    """Bytes that this process has read from disks, and its page faults that waited for one."""
    read = int(re.search(r"read_bytes: (\d+)", Path("/proc/self/io").read_text())[1])
    return read, resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def row(what: str, found: str, unit: str, before: tuple[int, int] | None = None) -> None:
    """Prints a row; `before` is disk_state() at its begin."""
    disk = ["", ""]
    if before:
        read, faults = (after - then for after, then in zip(disk_state(), before, strict=True))
        disk = [f"{read / GB:.2f} GB", f"{faults:,}"]
    print(f"| {what} | {found} | {unit} | {disk[0]} | {disk[1]} |", flush=True)


def drop_from_page_cache(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # a page that is not on the disk yet stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def ballast(num_bytes: int) -> Iterator[None]:
    """Locks memory in another process."""
    if num_bytes == 0:
        yield
        return
    command = [sys.executable, __file__, "--hold", str(num_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            if holder.stdout.readline() != "locked\n":
                raise SystemExit(f"{num_bytes / GB:.1f} GB cannot be locked: free memory, or raise `ulimit -l`")
            yield
        finally:
            holder.stdin.close()


def hold(num_bytes: int) -> int:
    """Locks memory until standard input ends."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)) != 0:
        return 1
    print("locked", flush=True)
    sys.stdin.read()
    return 0


def longest(args: argparse.Namespace) -> int:
    return max([args.context + args.tokens, *args.prompts, args.tokens]) + 64


def loaded(args: argparse.Namespace, state: str) -> longcat.Engine:
    """Loads the engine and prints the times of that and of the first token."""
    before, start = disk_state(), time.perf_counter()
    engine = longcat.Engine(
        args.checkpoint, device="cpu", max_num_seqs=max(args.batches), max_model_len=longest(args),
        kv_cache_memory=args.kv_cache_memory, kv_cache_dtype=args.kv_cache_dtype, num_threads=args.num_threads,
        enable_prefix_caching=False,
    )  # fmt: skip
    row(f"load, {state}", f"{time.perf_counter() - start:.2f}", "s", before)
    before, start = disk_state(), time.perf_counter()
    engine.generate(prompt_token_ids=prompt(args, 8, 0), max_tokens=1, temperature=0)
    row(f"first token of 8, {state}", f"{time.perf_counter() - start:.2f}", "s", before)
    return engine


def prompt(args: argparse.Namespace, length: int, seed: int) -> list[int]:
    vocab_size = json.loads(Path(args.checkpoint, "config.json").read_text())["vocab_size"]
    return random.Random(seed).choices(range(3, vocab_size), k=length)


def measure(args: argparse.Namespace) -> None:
    """Prints all rows behind those of loading."""
    engine = loaded(args, "warm")
    seed, num_tokens = 1, 8

    def generate(length: int, count: int, batch: int) -> tuple[float, float]:
        """Returns the seconds of the prompts and of the tokens behind the first."""
        nonlocal seed, num_tokens
        prompts = [prompt(args, length, seed + i) for i in range(batch)]
        seed, num_tokens = seed + batch, num_tokens + batch * (length + count)
        start = time.perf_counter()
        outputs = engine.generate(prompt_token_ids=prompts, max_tokens=count, temperature=0, ignore_eos=True)
        total = time.perf_counter() - start
        decoding = max(output.metrics.decode_ms for output in outputs) / 1e3
        return total - decoding, decoding

    def rates(work: Callable[[], float]) -> tuple[str, tuple[int, int]]:
        before = disk_state()
        found = [work() for _ in range(args.rounds)]
        return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})", before

    for batch in args.batches:

        def decode(batch: int = batch) -> float:
            return batch * (args.tokens - 1) / generate(8, args.tokens, batch)[1]

        found, before = rates(decode)
        row(f"decode, batch {batch}", found, "tok/s", before)
    for length in args.prompts:

        def compute(length: int = length) -> float:
            return length / generate(length, 1, 1)[0]

        found, before = rates(compute)
        row(f"prompt of {length:,}", found, "tok/s", before)
    if args.context > 0:
        before = disk_state()
        prefill, decoding = generate(args.context, args.tokens, 1)
        row(f"prompt of {args.context:,}", f"{args.context / prefill:.1f}", "tok/s", before)
        row(f"decode behind {args.context:,} tokens", f"{(args.tokens - 1) / decoding:.2f}", "tok/s")
    expected = plan(
        args.checkpoint, num_tokens=num_tokens, bandwidth=1e9, max_num_seqs=max(args.batches),
        max_model_len=longest(args), kv_cache_memory=args.kv_cache_memory, kv_cache_dtype=args.kv_cache_dtype,
    )  # fmt: skip
    peak = status_bytes("VmHWM")
    row("peak memory", f"{peak / GB:.2f}", "GB")
    row("peak memory by `longcat plan`", f"{expected.peak / GB:.2f} ({expected.peak / peak:.3f} of it)", "GB")
    engine.close()


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--batches", type=numbers, default=[1, 4, 8])
    parser.add_argument("--prompts", type=numbers, default=[512, 4096])
    parser.add_argument("--context", type=int, default=32768, help="tokens; 0: no long context")
    parser.add_argument("--tokens", type=int, default=64, help="to generate in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ballast", type=float, default=0, metavar="GB")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--kv-cache-memory", default="2GiB")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["cold", "warm"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.hold:
        return hold(args.hold)
    if args.checkpoint is None:
        parser.error("which checkpoint?")
    if args.part == "cold":
        loaded(args, "cold").close()
    elif args.part == "warm":
        measure(args)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        print(f"{args.checkpoint}: {os.cpu_count()} cores, {memory / GB:.1f} GB of memory, {args.ballast:.1f} GB of it "
              f"locked, load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
        print("| | found | | disk | faults |\n| --- | --- | --- | --- | --- |", flush=True)
        with ballast(int(args.ballast * GB)):
            drop_from_page_cache(Path(args.checkpoint))
            for part in ("cold", "warm"):
                subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
