"""Counts what token dispatch would save of a step of LongCat-Flash-Lite on several H100.

python bench/scripts/token_dispatch.py

Today every rank has all tokens: each rank computes its own experts of all of them, and an all-reduce over all ranks
adds the results. With dispatch a tensor-parallel group has its own tokens. It sends a token's row to each rank outside
the group that has one of its experts, and gets one row back. The group's all-reduce adds these rows to its second FFN.

- Bytes are those that the busiest rank sends or receives in all layers, whichever are more. An all-reduce moves what
  cuda/nccl moves. Experts are picked at random, as python/longcat/planning/cost.py has it.
- Times are those of cost.py. An exchange of rows takes one hop, and its bytes the links. Prompts are evenly divided
  among the groups; their attention proper is not counted.

Nothing here is measured. docs/parallel.md has the table.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from longcat.checkpoint.random_weights import LITE_CONFIG
from longcat.planning.cost import H100, SUMS_OF_HEADS, decode_step
from longcat.planning.plan import Plan, plan

CONTEXT = 8192
ONE_EXCHANGE = 256 << 10  # [bytes] of a sum in which each rank sends its values to all others
LAYOUTS = [(8, 8), (1, 8), (8, 64), (1, 64)]  # tp, ep
STEPS = [("decode", 1), ("decode", 16), ("decode", 128), ("prefill", 8192)]
HIDDEN, LAYERS = int(LITE_CONFIG["hidden_size"]), int(LITE_CONFIG["num_layers"])
ROUTED, TOPK = int(LITE_CONFIG["n_routed_experts"]), int(LITE_CONFIG["moe_topk"])
ALL_EXPERTS = ROUTED + int(LITE_CONFIG["zero_expert_num"])
ROW = HIDDEN * H100.activation_bytes  # [bytes] of a token


@dataclass(frozen=True)
class Rows:
    """Rows of tokens that the busiest rank sends or receives in one exchange: means of random picks."""

    here: float  # within its machine
    far: float  # between machines


def dispatched(tokens: int, tp: int, ep: int) -> Rows:
    """Rows of one exchange, to the experts or back. A token's row leaves its group once for each rank that needs it."""
    rng, trials, groups = random.Random(0), max(2, 256 // tokens), ep // tp
    here = far = 0.0
    for _ in range(trials):
        sent, received = ([[0, 0] for _ in range(ep)] for _ in range(2))
        for token in range(tokens):
            group = token % groups
            owner = group * tp + token // groups % tp  # one rank of the group sends
            picks = (pick for pick in rng.sample(range(ALL_EXPERTS), TOPK) if pick < ROUTED)
            for rank in {pick * ep // ROUTED for pick in picks}:
                if rank // tp != group:
                    is_far = rank // H100.devices != owner // H100.devices
                    sent[owner][is_far] += 1
                    received[rank][is_far] += 1
        busiest = max([*sent, *received], key=sum)
        here, far = here + busiest[0], far + busiest[1]
    return Rows(here / trials, far / trials)


def sum_bytes(ranks: int, num_bytes: int) -> float:
    """Bytes that a rank sends in an all-reduce."""
    if num_bytes <= ONE_EXCHANGE:
        return (ranks - 1) * num_bytes
    return 2 * num_bytes * (ranks - 1) / ranks


def exchange_seconds(rows: Rows, ep: int) -> float:
    if rows.here + rows.far == 0:
        return 0.0
    hop = H100.network_seconds if ep > H100.devices else H100.sum_seconds
    return hop + rows.here * ROW / H100.link_bandwidth + rows.far * ROW / H100.network_bandwidth


def line(made: Plan, tp: int, ep: int, kind: str, tokens: int) -> str:
    own = -(-tokens * tp // ep)  # tokens of a group
    rows = dispatched(tokens, tp, ep)
    sums = SUMS_OF_HEADS
    sent = LAYERS * (sums * sum_bytes(tp, tokens * ROW) + sum_bytes(ep, tokens * ROW))
    sent_then = LAYERS * ((sums + 1) * sum_bytes(tp, own * ROW) + 2 * (rows.here + rows.far) * ROW)
    time = LAYERS * (sums * H100.sum_time(tp, tokens * ROW) + H100.sum_time(ep, tokens * ROW))
    time_then = LAYERS * ((sums + 1) * H100.sum_time(tp, own * ROW) + 2 * exchange_seconds(rows, ep))
    now, then = (decode_step(made, H100, tp, ep, count, CONTEXT, 8, 16) for count in (tokens, own))
    rest, rest_then = (step.core + (step.cache if kind == "decode" else 0) for step in (now, then))
    whole = now.core + now.experts + now.ops + time + (now.cache if kind == "decode" else 0)
    whole_then = whole - (time - time_then) - (rest - rest_then)
    cells = [
        *(ep, f"tp {tp}, ep {ep}", f"{kind} {tokens:,}"),
        *(f"{sent / 1e6:,.1f}", f"{sent_then / 1e6:,.1f}"),
        *(f"{1e3 * time:.2f}", f"{1e3 * time_then:.2f}"),
        *(f"{1e3 * rest:.2f}", f"{1e3 * rest_then:.2f}"),
        *(f"{1e3 * whole:.1f}", f"{1e3 * whole_then:.1f}"),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LITE_CONFIG))
        made = plan(folder, bandwidth=1e10, max_model_len=CONTEXT)
    print("| GPUs | layout | tokens | MB sent | then | exchanges, ms | then | rest, ms | then | step, ms | then |")
    print("| --: | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for tp, ep in LAYOUTS:
        for kind, tokens in STEPS:
            print(line(made, tp, ep, kind, tokens))


if __name__ == "__main__":
    main()
