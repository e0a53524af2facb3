"""Plans where a checkpoint fits and how much memory it takes, from its config and headers only.

With only a config.json, the shapes that it requires replace the headers, so planning is possible before a download.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import longcat._core as _core
from longcat.checkpoint.formats import PRESETS
from longcat.checkpoint.sources.opening import refuse_gguf
from longcat.engine.config import EngineConfig
from longcat.planning.machine import measured_bandwidth, process_bytes
from longcat.planning.parts import (
    FP8_BLOCK,
    LOOKED_UP,
    TABLES,
    Part,
    bits_of,
    expected_tensors,
    is_fp8_on_load,
    parts_of,
    stored_as,
    stored_tensors,
    touched,
)
from longcat.support.files import read_json_object
from longcat.support.json_types import JsonObject
from longcat.support.values import positive

if TYPE_CHECKING:
    from typing_extensions import Unpack

GIB = 1 << 30
GPU_BANDWIDTH = 3.0e12  # [bytes/s] of an H100, as in cost.py
_FORMATS = {"F32": "f32", "BF16": "bf16", "F8_E4M3": "fp8", "I8": "int8"}  # by the core's names
# Bits per weight, including scales: fp8 has one f32 per block of 128 x 128.
_BITS = {"bf16": 16.0, "fp8": 8.0 + 32 / FP8_BLOCK**2} | {
    name: 8 * math.prod(_core.packed_shape(f"{name}_x8", 8, 1024)) / (8 * 1024) for name in ("int8", "int4")
}

# Size of [rows, cols] of N-gram tables by format [bytes].
_TABLE_FORMATS: dict[str, Callable[[int, int], int]] = {
    "bf16": lambda rows, cols: 2 * rows * cols,
    "fp8": lambda rows, cols: math.prod(_core.packed_shape("fp8_row", rows, cols)),
    "int8": lambda rows, cols: math.prod(_core.packed_shape("int8_row", rows, cols)),
    "int4": lambda rows, cols: math.prod(_core.packed_shape("int4_row", rows, cols)),
}


@dataclass(frozen=True)
class TableRow:
    """The N-gram tables in one format."""

    format: str  # "bf16", or as `longcat convert --tables` takes it
    num_bytes: int
    resident: int  # in memory at the peak, with the tables on disk
    fits: bool  # whether memory holds all of them beside the rest of the engine


@dataclass
class Row:
    """One placement of the model."""

    placement: str
    format: str
    expert_bits: float  # per weight
    core_bits: float  # per weight of attention, dense FFN and head
    fast_bytes: int  # in the memory of the device that computes
    host_bytes: int  # read by lookups, in host memory
    state: str  # "today", "untried" (built, but not yet run on a GPU) or "later" (not built)

    @property
    def on_cpu(self) -> bool:
        return self.placement.startswith("CPU")


@dataclass(frozen=True)
class HeldBits:
    """Bits per weight, including scales, in the form that kernels read."""

    experts: float
    core: float  # attention, dense FFNs, N-gram projections, head
    embedding: float
    tables: float


@dataclass
class Plan:
    """An engine's memory [bytes] and speed. Of several ranks, it describes the one with the most weights."""

    model: str
    architecture: str
    has_weights: bool
    is_packed: bool  # by `longcat convert`
    dtype: str
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_tokens: int  # tokens processed before the peak
    parts: list[Part]
    kv_cache: int
    kv_bytes_per_token: int  # including the MTP layer's latents, which have room in every cache
    kv_read_per_token: int  # of a position that a token attends to
    index_read_per_token: int  # of every position, by the indexer of sparse attention
    index_topk: int | None  # most positions that a token attends to; None: all
    activations: int
    gpu_step_tokens: int  # as max_num_batched_tokens, with a GPU's default
    process: int  # Python, libraries, tokenizer
    available: int
    bandwidth: float  # [bytes/s]
    tensor_parallel_size: int
    expert_parallel_size: int
    rank_weights: list[int]  # held by each rank
    rank_tables: list[int]  # the part of rank_weights in N-gram tables
    fp8_core: int = 0  # weights of the core that quantization="fp8" keeps as fp8 blocks
    table_shapes: list[tuple[int, int]] = field(repr=False, default_factory=list)  # rows and columns, of all ranks
    config: JsonObject = field(repr=False, default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(part.weights for part in self.parts)

    @property
    def weights(self) -> int:
        """Memory of the weights at the peak."""
        return sum(part.touched + part.copied for part in self.parts)

    @property
    def peak(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.process

    @property
    def num_ranks(self) -> int:
        return len(self.rank_weights)

    @property
    def fits(self) -> bool:
        """Whether all ranks fit on this machine, each with this rank's peak. The bare processes are not counted."""
        return self.num_ranks * (self.peak - self.process) <= self.available

    def step_bytes(self, batch: int, context: int, row: Row | None = None) -> float:
        """Bytes read for one token of each of `batch` requests at `context` tokens: as stored, or as in `row`."""
        total = float(batch * self.cache_read(context))
        for part in self.parts:
            if part.name in LOOKED_UP:
                continue
            is_expert = part.name == "experts"
            size = part.read if row is None else part.weights * (row.expert_bits if is_expert else row.core_bits) / 8
            total += size * self._share_of_experts(batch) if is_expert else size
        return total

    def cache_read(self, context: int) -> int:
        """Bytes of the cache that one decoded token reads at `context` tokens."""
        attended = min(context, self.index_topk or context)
        indexed = context if self.index_topk and context > self.index_topk else 0
        return attended * self.kv_read_per_token + indexed * self.index_read_per_token

    def tokens_per_second(self, batch: int, context: int, row: Row | None = None) -> float:
        """Tokens per second of all requests together, if reading memory took all the time."""
        bandwidth = GPU_BANDWIDTH if row and not row.on_cpu else self.bandwidth
        return batch * bandwidth / self.step_bytes(batch, context, row)

    def _share_of_experts(self, batch: int) -> float:
        c = self.config
        picked = c["moe_topk"] / (c["n_routed_experts"] + c.get("zero_expert_num", 0))
        return float(1 - (1 - picked) ** batch)

    def placements(self) -> list[Row]:
        """All placements and weight formats, including planned ones."""
        size = {part.name: part.weights for part in self.parts}
        looked_up = sum(size[name] for name in LOOKED_UP if name in size)
        tables = size.get("N-gram tables", 0)
        words = looked_up - tables
        experts = size["experts"]
        core = self.parameters - looked_up - experts
        in_f32 = size.get("router", 0) + size.get("norms", 0)

        def row(placement: str, format: str, expert: str, rest: str, host: int, state: str = "later") -> Row:
            bits = 16 * (looked_up - host) + _BITS[expert] * experts + _BITS[rest] * (core - in_f32) + 32 * in_f32
            return Row(placement, format, _BITS[expert], _BITS[rest], int(bits / 8), 2 * host, state)

        def fp8(placement: str, host: int) -> Row:
            """Core and experts. Some core tensors stay bf16 or f32, which counts as bf16 here, too."""
            made = row(placement, "fp8", "fp8", "bf16", host, "untried")
            bits = self.fp8_bits(core)
            return replace(made, core_bits=bits, fast_bytes=made.fast_bytes - int((16 - bits) * core / 8))

        rows = [row("CPU, tables on disk", "bf16", "bf16", "bf16", looked_up, "today")]
        rows.append(row("CPU, tables on disk", "fp8 experts", "fp8", "bf16", looked_up, "today"))
        rows.append(row("CPU, tables on disk", "int4 experts, int8 core", "int4", "int8", looked_up, "today"))
        rows.append(row("GPU", "bf16", "bf16", "bf16", 0, "untried"))
        rows.append(row("GPU", "fp8 experts", "fp8", "bf16", 0, "untried"))
        rows.append(fp8("GPU", 0))
        if tables:
            rows.append(row("GPU, tables in host memory", "bf16", "bf16", "bf16", tables, "untried"))
            rows.append(row("GPU, tables in host memory", "fp8 experts", "fp8", "bf16", tables, "untried"))
            rows.append(fp8("GPU, tables in host memory", tables))
            rows.append(row("GPU, all lookups in host memory", "fp8 experts", "fp8", "bf16", tables + words))
            rows.append(row("GPU, all lookups in host memory", "int4 experts, int8 core", "int4", "int8", looked_up))
        return rows + [self._packed_placement(quant) for quant in ("int8", "int4")]

    def fp8_bits(self, core: int) -> float:
        """Bits per weight of the core, of this many weights, with quantization="fp8"."""
        return 16 - (16 - _BITS["fp8"]) * self.fp8_core / max(1, core)

    def _packed_placement(self, quant: str) -> Row:
        """The checkpoint that `longcat convert --quant` writes, on a GPU. Some core tensors stay bf16 or f32 there."""
        config_text = json.dumps(self.config)
        expected = expected_tensors(config_text, any(part.name.startswith("MTP") for part in self.parts))
        shard = _core.shard(config_text, 1, 1, 0)
        parts = parts_of(expected, stored_as(expected, config_text, PRESETS[quant]), "bf16", 1, self.config, shard)
        [experts] = [part for part in parts if part.name == "experts"]
        core = [part for part in parts if part.name not in (*LOOKED_UP, "experts", "draft head")]
        host = sum(part.held for part in parts if part.name == "N-gram tables")
        return Row(
            "GPU, tables in host memory" if host else "GPU",
            quant,
            bits_of([experts]),
            bits_of(core),
            sum(part.held for part in parts if part.name not in ("N-gram tables", "draft head")),
            host,
            "untried",
        )

    def held_bits(self) -> HeldBits | None:
        """Bits per weight of a packed checkpoint on a GPU; None: it is not packed."""
        if not self.is_packed:
            return None
        by_name = {part.name: part for part in self.parts}

        def bits(*names: str) -> float:
            return bits_of([by_name[name] for name in names if name in by_name])

        head = "head" if "head" in by_name else "word embedding"  # one matrix, where they are tied
        core = ("attention", "indexer", "dense FFN", "N-gram projections", head)
        return HeldBits(bits("experts"), bits(*core), bits("word embedding"), bits("N-gram tables"))

    def tables(self) -> list[TableRow]:
        """The N-gram tables in each format of `longcat convert`, those of all ranks together."""
        part = next((part for part in self.parts if part.name == "N-gram tables"), Part(""))
        rest = self.num_ranks * (self.peak - self.process - part.touched - part.copied)
        rows = []
        for format, bytes_of in _TABLE_FORMATS.items():
            sizes = [bytes_of(*shape) for shape in self.table_shapes]
            resident = sum(touched(size, self.num_tokens) for size in sizes)
            rows.append(TableRow(format, sum(sizes), resident, rest + sum(sizes) <= self.available))
        return rows if self.table_shapes else []

    def gpu_buffers(self, tp: int = 1, ep: int = 1) -> int:
        """Memory of a GPU that an engine takes beside weights and cache, and outside of GPU_SPARE_BYTES."""
        return _core.gpu_buffers(json.dumps(self.config), tp, ep, self.gpu_step_tokens)

    def cache_tokens(self, row: Row, memory: int) -> int:
        """Tokens of latent cache that fit in `memory` besides the weights; negative when the weights do not fit."""
        workspace = self.activations + self.process if row.on_cpu else _core.GPU_SPARE_BYTES + self.gpu_buffers()
        return int((memory - row.fast_bytes - workspace) // self.kv_bytes_per_token)

    def as_dict(self) -> JsonObject:
        values = asdict(self)
        del values["config"], values["table_shapes"], values["fp8_core"]
        rows = [asdict(row) for row in self.placements()]
        tables = [asdict(row) for row in self.tables()]
        sums = {"peak": self.peak, "fits": self.fits, "parameters": self.parameters}
        return values | sums | {"placements": rows, "tables": tables}


class PlanKeywords(TypedDict, total=False):
    """The engine's options that a plan depends on."""

    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    index_cache_dtype: str
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    kv_cache_memory: int | str
    speculative: Mapping[str, object] | None
    tensor_parallel_size: int
    expert_parallel_size: int


def plan(
    model: str | os.PathLike[str],
    *,
    num_tokens: int | None = None,
    bandwidth: float | None = None,
    **options: Unpack[PlanKeywords],
) -> Plan:
    """Plans an Engine with these options on this machine's CPU. The core gives the sizes of its cache and buffers.

    Args:
        model: a checkpoint folder, or a folder with only a config.json.
        num_tokens: tokens processed before the peak; default: as many as the latent cache holds.
        bandwidth: memory bandwidth [bytes/s]; default: measured, which takes a moment.
        options: as for Engine.
    Raises:
        longcat.Error: config or headers are damaged, or of another model.
        longcat.OutOfMemoryError: the latent cache has no room.
        ValueError, TypeError: an option is wrong.
    """
    model = os.path.expanduser(os.fspath(model))
    refuse_gguf(model, "plan")
    if bandwidth is not None and not 0 < bandwidth < math.inf:
        raise ValueError(f"bandwidth={bandwidth / 1e9:g} GB/s; expected more than 0")
    core = EngineConfig.of(model, options).core_options()
    available = _core.available_memory()
    memory = _core.plan_memory(model, core, available)
    config = read_json_object(Path(model, "config.json"), "[config]") | memory["fields"]
    with_mtp = core.drafts_by_mtp
    expected = expected_tensors(json.dumps(config), with_mtp)
    stored, has_weights = stored_tensors(model, expected, with_mtp)
    shards = [
        _core.shard(json.dumps(config), core.tensor_parallel_size, core.expert_parallel_size, rank)
        for rank in range(len(memory["buffers"]))
    ]
    dtype, num_blocks = _FORMATS[memory["dtype"]], memory["num_blocks"]
    num_tokens = positive("num_tokens", num_tokens) or num_blocks * memory["block_tokens"]
    parts = [
        parts_of(expected, stored, dtype, num_tokens, config, shard, core.draft_vocab, core.quantization)
        for shard in shards
    ]
    rank_weights = [sum(part.held for part in of_rank) for of_rank in parts]
    rank_tables = [sum(part.held for part in of_rank if part.name == "N-gram tables") for of_rank in parts]
    largest = rank_weights.index(max(rank_weights))
    allocated, unwritten = memory["buffers"][largest]
    bytes_per_token = memory["block_bytes"] // memory["block_tokens"]
    sub_layers = 2 * int(config["num_layers"])  # and one of the MTP layer, which only drafts read
    index_bytes, index_topk = 0, None
    if config.get("attention_method") == "LSA":
        index_topk = int(config["index_topk"])
        key_bytes = memory["index_key_bytes"]
        index_bytes = (memory["num_index_layers"] - 1) * key_bytes
        bytes_of_latents = bytes_per_token - index_bytes - key_bytes
    else:
        bytes_of_latents = bytes_per_token
    return Plan(
        model=model,
        architecture=config["architectures"][0],
        has_weights=has_weights,
        is_packed=any(tensor.is_packed for tensor in stored),
        dtype=dtype,
        kv_cache_dtype=_FORMATS[memory["kv_cache_dtype"]],
        max_model_len=memory["max_model_len"],
        max_num_seqs=core.max_num_seqs,
        max_num_batched_tokens=core.max_num_batched_tokens,
        num_tokens=num_tokens,
        parts=parts[largest],
        kv_cache=num_blocks * memory["block_bytes"],
        kv_bytes_per_token=bytes_per_token,
        kv_read_per_token=bytes_of_latents if with_mtp else bytes_of_latents * sub_layers // (sub_layers + 1),
        index_read_per_token=index_bytes,
        index_topk=index_topk,
        activations=allocated - unwritten,
        gpu_step_tokens=EngineConfig.of(model, {**options, "device": "cuda"}).core_options().max_num_batched_tokens,
        process=process_bytes(model),
        available=available,
        bandwidth=bandwidth or measured_bandwidth(),
        tensor_parallel_size=core.tensor_parallel_size,
        expert_parallel_size=core.expert_parallel_size,
        rank_weights=rank_weights,
        rank_tables=rank_tables,
        fp8_core=sum(math.prod(shape) for name, shape in expected.items() if is_fp8_on_load(name, "fp8-core")),
        table_shapes=[(s[0], s[1]) for name, s in expected.items() if re.match(TABLES, name)],
        config=config,
    )


def gpu_formats(made: Plan) -> dict[str, HeldBits]:
    """What a GPU can make of the weights: as they are, the experts in fp8, or the core, too."""
    others = (*LOOKED_UP, "experts", "router", "norms")  # router and norms stay f32
    core = sum(part.weights for part in made.parts if part.name not in others)
    core_bits = {"bf16": _BITS["bf16"], "fp8": made.fp8_bits(core)}
    formats = (("bf16", "bf16", "bf16"), ("fp8-experts", "fp8", "bf16"), ("fp8", "fp8", "fp8"))
    return {name: HeldBits(_BITS[experts], core_bits[rest], 16, 16) for name, experts, rest in formats}
