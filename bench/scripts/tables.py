"""Times prompts with N-gram tables on disk: rows in the page cache, and rows that are not.

python bench/scripts/tables.py CHECKPOINT [--prompt 512] [--rounds 5]

A round is a process of its own. It drops the tables' pages from the page cache, which needs no privilege; pages that
other processes use stay. It computes one prompt of random tokens to load the other weights. Then it computes a second
prompt, cold and once more. "read" is the part of the tables that the cold pass read into the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path


def drop_tables(model: str) -> int:
    """Drops the N-gram tables from the page cache. Returns the tables' size [bytes]."""
    from longcat import _core

    checkpoint = _core.Checkpoint(model)
    shards = [Path(model, name) for name, *_ in checkpoint.shards()]
    size = 0
    for name, _, _, shard, begin, end in checkpoint.tensors():
        if not name.startswith(("model.ngram_embeddings.embedders.", "model.oe_embed_tokens")):
            continue
        with shards[shard].open("rb") as file:
            data = 8 + int.from_bytes(file.read(8), "little")
            os.fsync(file.fileno())  # the system would keep pages that are not on the disk yet
            os.posix_fadvise(file.fileno(), data + begin, end - begin, os.POSIX_FADV_DONTNEED)
        size += end - begin
    return size


def one_round(model: str, length: int) -> dict[str, float]:
    import random
    import time

    import longcat
    from longcat import _testing as testing

    size = drop_tables(model)
    engine = longcat.Engine(
        model, max_model_len=2 * length, max_num_seqs=1, max_num_batched_tokens=length, enable_prefix_caching=False,
        ngram_placement="disk",
    )  # fmt: skip
    draw = random.Random(os.getpid())
    prompts = [[draw.randrange(3, 100_000) for _ in range(length)] for _ in range(2)]

    def seconds(prompt: list[int]) -> float:
        start = time.perf_counter()
        engine.generate(prompt_token_ids=prompt, max_tokens=1, ignore_eos=True)
        return time.perf_counter() - start

    seconds(prompts[0])  # loads the weights other than the tables
    before = testing.cached_table_bytes(model) / 2**20
    cold = seconds(prompts[1])
    read = testing.cached_table_bytes(model) / 2**20 - before
    warm = min(seconds(prompts[1]) for _ in range(3))
    return {"cold": cold, "warm": warm, "read": read, "tables": size / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-round", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_round:
        print(json.dumps(one_round(args.model, args.prompt)))
        return
    command = [sys.executable, __file__, args.model, "--prompt", str(args.prompt), "--one-round"]
    rounds = [json.loads(subprocess.check_output(command)) for _ in range(args.rounds)]
    middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    rows = 12 * args.prompt
    print("| tables [MiB] | rows | cold [tok/s] | warm [tok/s] | cold rows/s | read [MiB] |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {middle['tables']:,.0f} | {rows:,} | {args.prompt / middle['cold']:.0f} | "
        f"{args.prompt / middle['warm']:.0f} | "
        f"{rows / max(1e-9, middle['cold'] - middle['warm']):,.0f} | {middle['read']:.1f} |"
    )


if __name__ == "__main__":
    main()
