"""Times decode steps on one rank and on several, beside the prediction of longcat.planning.cost for the same rates.

    python bench/scripts/parallel_steps.py CHECKPOINT --layouts 1x1 2x1 1x2 2x2 --batch 1 8

Ranks have one thread each. All ranks measure three rates at the same time, before and after the steps. These are
multiplying rows with bf16 weights that no cache holds, a small operation, and an all-reduce by the model's
communicator. All times are the least of many, which is the time without other work on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
from longcat import _core
from longcat import _testing as testing
from longcat.parallel.job import join_job
from longcat.planning.cost import Hardware, decode_step
from longcat.planning.plan import plan

CONTEXT, ROUNDS = 64, 20
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}


def slowest(seconds: float, communicator: _core.Communicator | None) -> float:
    """The largest `seconds` of all ranks."""
    if communicator is None:
        return seconds
    all_seconds = np.zeros(communicator.size, np.float32)
    communicator.all_gather(all_seconds, np.array([seconds], np.float32))
    return float(all_seconds.max())


def measured_rates(communicator: _core.Communicator | None) -> tuple[list[tuple[int, float]], float]:
    """Seconds for each weight, by number of rows, while all ranks compute; and seconds of a small operation."""
    height, width = 768, 1536
    weights = [np.full((height, width), 0x3C00 + i, np.uint16) for i in range(48)]  # 113 MB of bf16
    ops = testing.Ops(1)

    def passes(x: np.ndarray, some: list[np.ndarray]) -> float:
        start = time.perf_counter()
        for weight in some:
            ops.linear(x, weight)
        return time.perf_counter() - start

    def a_weight(rows: int) -> float:
        x = np.ones((rows, width), np.float32)
        times = []
        for _ in range(ROUNDS):
            if communicator is not None:
                communicator.barrier()
            times.append(slowest(passes(x, weights), communicator))
        return min(times) / (len(weights) * height * width)

    small = [np.full((16, 16), 0x3C00, np.uint16)] * 200
    op = min(passes(np.ones((1, 16), np.float32), small) / len(small) for _ in range(ROUNDS))
    return [(rows, a_weight(rows)) for rows in (1, 2, 3, 4, 8, 16)], op


def sum_seconds(communicator: _core.Communicator, hidden: int) -> float:
    x = np.zeros(hidden, np.float32)
    times = []
    for _ in range(300):
        start = time.perf_counter()
        communicator.all_reduce(x)
        times.append(time.perf_counter() - start)
    return min(times)


def step_seconds(folder: str, tp: int, ep: int, batch: int, communicator: _core.Communicator | None) -> float | None:
    """The least time of a decode step of `batch` requests [s]; None on follower ranks."""
    options = _core.EngineOptions()
    options.num_threads, options.max_num_seqs, options.kv_cache_memory = 1, batch, 64 << 20
    options.tensor_parallel_size, options.expert_parallel_size = tp, ep
    options.max_model_len, options.overlap = 512, False
    engine = _core.Engine(folder, options, None, communicator)
    if engine.info()["rank"] > 0:
        engine.start()
        engine.join()
        return None
    rng = np.random.default_rng(0)
    params = _core.SamplingParams()
    params.max_tokens, params.temperature = 140, 0.0
    for _ in range(batch):
        engine.add_request([int(i) for i in rng.integers(3, engine.info()["vocab_size"], CONTEXT)], params)
    while len(engine.step()) < batch:
        pass
    times = []
    for _ in range(120):
        start = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - start)
    engine.start()
    engine.close()
    return min(times)


def measure(folder: str, tp: int, ep: int, batches: list[int]) -> dict[str, Any]:
    """Runs on every rank of a job; rank 0 returns the result."""
    job = join_job(tp, ep)
    communicator = job.communicator if job is not None else None
    before, op = measured_rates(communicator)
    result: dict[str, Any] = {"op": op}
    if communicator is not None:
        hidden = json.load(open(os.path.join(folder, "config.json")))["hidden_size"]
        result["sum"] = sum_seconds(communicator, hidden)
    for batch in batches:
        result[str(batch)] = step_seconds(folder, tp, ep, batch, communicator) or 0.0
    after, _ = measured_rates(communicator)
    result["rates"] = [(rows, min(a, b)) for (rows, a), (_, b) in zip(before, after, strict=True)]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layouts", nargs="+", default=["1x1", "2x1", "1x2", "2x2"], help="tp x ep")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rank", metavar="TPxEP", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        tp, ep = map(int, args.rank.split("x"))
        result = measure(args.model, tp, ep, args.batch)
        if result[str(args.batch[0])]:
            print(json.dumps(result))
        return
    planned = plan(args.model, bandwidth=1e9, max_model_len=512)
    print("| layout | requests | reading [GB/s] | a sum [us] | predicted [ms] | measured [ms] | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for layout in args.layouts:
        tp, ep = map(int, layout.split("x"))
        ranks = max(tp, ep)
        command = [sys.executable, __file__, args.model, "--rank", layout, "--batch", *map(str, args.batch)]
        if ranks > 1:
            command = ["mpirun", "--bind-to", "none", "-n", str(ranks), *command]
        done = subprocess.run(
            command, env={**os.environ, **MPI_ENVIRONMENT}, capture_output=True, text=True, check=True
        )
        measured = json.loads(done.stdout)
        rates = tuple((rows, seconds) for rows, seconds in measured["rates"])
        machine = Hardware(
            name="this CPU", bandwidth=2 / rates[0][1], flops=2 * rates[-1][0] / rates[-1][1],
            op_seconds=measured["op"], sum_seconds=measured.get("sum", 0.0), link_bandwidth=5e9, devices=64,
            network_seconds=0, network_bandwidth=5e9, memory=0, activation_bytes=4, weight_seconds=rates,
        )  # fmt: skip
        for batch in args.batch:
            predicted = decode_step(planned, machine, tp, ep, batch, CONTEXT + 30, 16, 16).seconds
            found = measured[str(batch)]
            print(f"| tp {tp}, ep {ep} | {batch} | {machine.bandwidth / 1e9:.1f} | {1e6 * machine.sum_seconds:.0f} | "
                  f"{1e3 * predicted:.2f} | {1e3 * found:.2f} | {predicted / found:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
