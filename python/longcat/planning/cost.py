"""Estimates the time of a decode step on several devices, per layout.

A step takes the time of its slowest rank, which follows from what the rank reads, computes and sends. Reading and
computing overlap, so each part takes the longer of the two. Operations and all-reduces run one after the other, each
with its own minimum time. Nothing overlaps with an all-reduce.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longcat.planning.plan import Plan

OPS_OF_A_LAYER = 34  # two attentions of 10 operations, two FFNs of 3, the MoE of 8
SUMS_OF_HEADS = 3  # all-reduces per layer over tp ranks; each layer has one more over all ranks


@dataclass(frozen=True)
class Hardware:
    """A device, and the links between several. Times in seconds, rates per second."""

    name: str
    bandwidth: float  # [bytes/s] for reading weights
    flops: float  # per second, in matrix multiplications
    op_seconds: float  # minimum time of an operation
    sum_seconds: float  # time of a small all-reduce between two ranks of one machine
    link_bandwidth: float  # [bytes/s] per rank, within a machine
    devices: int  # per machine
    network_seconds: float  # time of a small all-reduce between two machines
    network_bandwidth: float  # [bytes/s] per rank, between machines
    memory: float  # [bytes] for weights and latents
    activation_bytes: int  # [bytes] of a value in an all-reduce
    # Measured pairs (rows, seconds per bf16 weight), rows ascending. They replace `bandwidth` and `flops`.
    weight_seconds: tuple[tuple[int, float], ...] = ()

    def matrix_time(self, weights: float, bits: float, rows: float) -> float:
        """Time to multiply `rows` rows by `weights` weights."""
        if not self.weight_seconds:
            return max(weights * bits / 8 / self.bandwidth, 2 * weights * rows / self.flops)
        table = self.weight_seconds
        if rows >= table[-1][0]:
            return weights * table[-1][1] * rows / table[-1][0]
        for (few, fast), (many, slow) in pairwise(table):
            if rows <= many:
                share = max(0.0, rows - few) / (many - few)
                return weights * (fast + share * (slow - fast))
        return weights * table[0][1]

    def sum_time(self, ranks: int, num_bytes: float) -> float:
        """Time of an all-reduce of `num_bytes` over `ranks`: a ring in the machine, then one between machines."""
        if ranks == 1:
            return 0.0
        here, machines = min(ranks, self.devices), -(-ranks // self.devices)
        steps = (here - 1).bit_length()  # of a tree
        seconds = self.sum_seconds * steps + 2 * num_bytes * (here - 1) / here / self.link_bandwidth
        if machines > 1:
            seconds += self.network_seconds * (machines - 1).bit_length()
            seconds += 2 * num_bytes * (machines - 1) / machines / self.network_bandwidth
        return seconds


# Not measured here: figures of the vendor, and what kernels commonly reach of them.
# - bandwidth: by NVIDIA's data sheets of H100 (3.35 TB/s), H200 (4.8) and A100 80GB (2.04). By its white papers of Ada
#   (RTX 4090: 1.01 TB/s) and RTX Blackwell (RTX 5090: 1.79). It counts 90 % of them, of GDDR 92 %. The H200 counts
#   81 %, as in bench/scripts/gpu_step.py.
# - flops: 60 % of bf16 with f32 sums: 989, 989, 312, 165 and 210 TFLOP/s, by the same papers.
# - links: 80 % of one direction of NVLink (450 GB/s, A100: 300). GeForce cards have no access to their peers, so NCCL
#   copies through host memory: 40 % of PCIe 5.0 or 4.0 x16 (64 and 32 GB/s).
# - small sums: NCCL's own tests on H100; assumed to be the same elsewhere, and three times as long through the host.
# - machines: eight devices, linked by 400 Gbit/s per device (A100: 200). For GeForce 100 Gbit/s are assumed.
# - memory: free on an idle card, less 2 GiB for driver and graphs.
H100 = Hardware(
    name="H100",
    bandwidth=3.0e12,
    flops=6.0e14,
    op_seconds=2.5e-6,
    sum_seconds=5e-6,
    link_bandwidth=3.6e11,
    devices=8,
    network_seconds=1.2e-5,
    network_bandwidth=4.0e10,
    memory=76 * 2**30,
    activation_bytes=2,
)
_RTX5090 = replace(
    H100,
    name="RTX 5090",
    bandwidth=1.65e12,
    flops=1.25e14,
    op_seconds=3.1e-6,  # without dependent launches: 0.6 us more between two kernels
    sum_seconds=1.5e-5,
    link_bandwidth=2.5e10,
    network_bandwidth=1.0e10,
    memory=29.4 * 2**30,
)
GPUS = {
    "h100": H100,
    "h200": replace(H100, name="H200", bandwidth=3.9e12, memory=137 * 2**30),
    "a100": replace(
        H100,
        name="A100",
        bandwidth=1.83e12,
        flops=1.9e14,
        op_seconds=3.1e-6,
        link_bandwidth=2.4e11,
        network_bandwidth=2.0e10,
    ),
    "rtx5090": _RTX5090,
    "rtx4090": replace(
        _RTX5090, name="RTX 4090", bandwidth=9.3e11, flops=1.0e14, link_bandwidth=1.3e10, memory=21.5 * 2**30
    ),
}


@dataclass(frozen=True)
class Step:
    """A decode step: the times of its parts [s], and the memory of a rank [bytes]."""

    core: float  # attention, dense FFNs, router, head
    experts: float
    cache: float  # reading the latents
    ops: float
    sums: float
    weights: float
    latents: float

    @property
    def seconds(self) -> float:
        return self.core + self.experts + self.cache + self.ops + self.sums


def decode_step(
    plan: Plan,
    hardware: Hardware,
    tp: int,
    ep: int,
    batch: int,
    context: int,
    expert_bits: float,
    core_bits: float,
    table_bits: float = 0,
    embedding_bits: float | None = None,
) -> Step:
    """Estimates a decode step of `batch` requests at `context` tokens on max(tp, ep) devices.

    Args:
        plan: of one rank.
        expert_bits, core_bits: bits per weight of the experts; of attention, dense FFNs, projections and head.
        table_bits: bits per weight of the N-gram tables in device memory. The time to read their rows is part of an
            operation's minimum time, wherever they are.
        embedding_bits: bits per weight of the word embedding; default: core_bits.
    """
    c, world = plan.config, max(tp, ep)
    weights = {part.name: part.weights for part in plan.parts}
    hidden, heads, layers = int(c["hidden_size"]), int(c["num_attention_heads"]), int(c["num_layers"])
    whole = 2 * layers * hidden * (int(c["q_lora_rank"]) + int(c["kv_lora_rank"]) + int(c["qk_rope_head_dim"]))
    by_head = weights["attention"] - whole

    router = weights.get("router", 0)
    core = whole + weights.get("indexer", 0) + (by_head + weights["dense FFN"]) / tp
    core += weights.get("N-gram projections", 0) * share_of_projections(json.dumps(c), tp, ep)
    core += weights.get("head", weights.get("word embedding", 0)) / world
    seconds_core = hardware.matrix_time(core, core_bits, batch) + hardware.matrix_time(router, 32, batch)

    expert = weights["experts"] / layers / int(c["n_routed_experts"])  # weights of one expert
    busiest, rows = busiest_rank(c["n_routed_experts"], c.get("zero_expert_num", 0), c["moe_topk"], ep, batch)
    read = layers * busiest * expert * ep / world
    seconds_experts = hardware.matrix_time(read, expert_bits, rows / busiest) if busiest else 0.0

    latents = batch * plan.cache_read(context)
    latent_dim = int(c["kv_lora_rank"]) + int(c["qk_rope_head_dim"])
    attended = (
        2
        * layers
        * batch
        * min(context, plan.index_topk or context)
        * heads
        / tp
        * 2
        * (latent_dim + int(c["kv_lora_rank"]))
    )
    sent = batch * hidden * hardware.activation_bytes
    sums = layers * (SUMS_OF_HEADS * hardware.sum_time(tp, sent) + hardware.sum_time(world, sent))
    if world > 1:  # the embedding, the logits to the ranks that sample, the sampled ids
        logits = batch * int(c["vocab_size"]) * 4 / world
        sums += hardware.sum_time(world, sent) + hardware.sum_time(world, logits) + hardware.sum_time(world, 4 * batch)
    embedding = weights["word embedding"] / world if "head" in weights else 0.0  # without a head it is the head, too
    return Step(
        core=seconds_core,
        experts=seconds_experts,
        cache=max(latents / hardware.bandwidth, attended / hardware.flops),
        ops=(layers * OPS_OF_A_LAYER + 6) * hardware.op_seconds,
        sums=sums,
        weights=core * core_bits / 8
        + embedding * (core_bits if embedding_bits is None else embedding_bits) / 8
        + 4 * (router + weights.get("norms", 0))
        + weights["experts"] / world * expert_bits / 8
        + weights.get("N-gram tables", 0) / world * table_bits / 8,
        latents=batch * context * plan.kv_bytes_per_token,
    )


@lru_cache(maxsize=512)
def share_of_projections(config_text: str, tp: int, ep: int) -> float:
    """The largest fraction of N-gram tables of which a rank has rows: it multiplies by their whole projections."""
    import longcat._core as _core

    counts = [len(_core.shard(config_text, tp, ep, rank)["tables"]) for rank in range(max(tp, ep))]
    return max(counts) / max(1, len(_core.shard(config_text, 1, 1, 0)["tables"]))


@lru_cache(maxsize=512)
def busiest_rank(routed: int, identity: int, topk: int, ep: int, batch: int) -> tuple[float, float]:
    """Experts that the busiest of `ep` groups reads for `batch` tokens, and rows it multiplies: means of random picks.

    The picks are uniform over all experts, as the training of the router intends.
    """
    rng, trials, experts, rows = random.Random(0), max(4, 256 // batch), 0, 0
    for _ in range(trials):
        picks = [pick for _ in range(batch) for pick in rng.sample(range(routed + identity), topk) if pick < routed]
        groups: list[Any] = [set() for _ in range(ep)]
        counts = [0] * ep
        for pick in picks:
            groups[pick * ep // routed].add(pick)
            counts[pick * ep // routed] += 1
        experts += max(map(len, groups))
        rows += max(counts)
    return experts / trials, rows / trials


def layouts(num_devices: int, config: dict[str, object]) -> list[tuple[int, int]]:
    """All (tp, ep) on `num_devices` devices that divide the model's sizes, most experts per rank last."""
    import longcat._core as _core

    found = []
    sizes = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    for tp, ep in sorted({(num_devices, n) for n in sizes} | {(n, num_devices) for n in sizes}):
        try:
            _core.shard(json.dumps(config), tp, ep, 0)
        except ValueError:
            continue
        found.append((tp, ep))
    return found
