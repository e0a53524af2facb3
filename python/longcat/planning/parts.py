"""Sizes of the model's parts, from the names and shapes of its tensors: in the files, in memory and on each rank."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.formats import packed_as, spellings
from longcat.support.json_types import JsonObject

# A page fault maps the cached pages of the 64 KiB around it (Linux's fault_around_bytes). Since Linux 6.18 it may map
# more, depending on how the file came into the cache: up to 128 KiB was seen.
_WINDOW = 64 << 10
FP8_BLOCK = 128
TABLES = r"model\.(ngram_embeddings\.embedders\.|oe_embed_tokens)"
# The part that a tensor belongs to; the first pattern that matches its name decides.
_PARTS = [
    ("word embedding", r"model\.embed_tokens\."),
    ("N-gram tables", TABLES),
    ("N-gram projections", r"model\.(ngram_embeddings\.post_projs\.|oe_embed_proj)"),
    ("indexer", r"model\.layers\.\d+\.self_attn\.\d\.indexer\."),
    ("attention", r"model\.layers\.\d+\.self_attn\."),
    ("dense FFN", r"model\.layers\.\d+\.mlps\."),
    ("experts", r"model\.layers\.\d+\.mlp\.experts\."),
    ("router", r"model\.layers\.\d+\.mlp\.router\."),
    ("head", r"lm_head\."),
    ("norms", r"model\.(layers\.\d+\.\w*norm|norm)\."),
    ("MTP embedding", r"model\.mtp\.embed_tokens\."),
    ("MTP layer", r"model\.mtp\."),
    ("draft head", r"$."),  # of no tensor: the engine makes it of a packed head
]
_DRAFT_ROWS = 128  # a cut draft head has whole blocks of rows
# Matrices that quantization="fp8" keeps as fp8 blocks; "fp8-experts" has those of experts alone.
_FP8_ON_LOAD = re.compile(
    r".*\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|o_proj|gate_proj|up_proj|down_proj|eh_proj)\.weight$|lm_head\.weight$"
)
LOOKED_UP = ("word embedding", "N-gram tables", "MTP embedding")
# Tensors that the engine copies, in the form that its kernels read.
_COPIED = re.compile(r"norm|kv_b_proj|post_projs|oe_embed_proj|\.router\.|weights_proj")
_COPIED_AS_STORED = re.compile(r"\.eh_proj\.")  # its two halves
_COPIED_AS_F32 = re.compile(r"norm|\.router\.|weights_proj")


@dataclass
class Part:
    """One component of the model: its number of weights, and its sizes [bytes]."""

    name: str
    weights: int = 0
    stored: int = 0  # in the files
    copied: int = 0  # in memory besides the files
    touched: int = 0  # of the files, resident in memory at the peak
    read: int = 0  # per decode step
    held: int = 0  # by one rank, in the form that its kernels read


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the files."""

    name: str
    dtype: str
    shape: tuple[int, ...]  # as stored; of a packed tensor, the shape of its bytes
    num_bytes: int

    @property
    def is_packed(self) -> bool:
        return self.name.rpartition(".")[2] in _core.PACKED_FORMATS

    @property
    def logical_name(self) -> str:
        return self.name.rpartition(".")[0] if self.is_packed else self.name.removesuffix("_scale_inv")


def expected_tensors(config_text: str, with_mtp: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that the engine reads, by name."""
    tensors = _core.expected_tensors(config_text)
    if with_mtp:
        tensors = [*tensors, *_core.expected_mtp_tensors(config_text)]
    return {name: shape for name, shape, _ in tensors}


def stored_tensors(model: str, expected: dict[str, tuple[int, ...]], with_mtp: bool) -> tuple[list[StoredTensor], bool]:
    """The expected tensors, and whether they are in the folder. If not, they are as bf16 would store them."""
    try:
        checkpoint = _core.Checkpoint(model)
    except Error:
        if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in os.listdir(model)):
            raise
        return [StoredTensor(name, "BF16", shape, 2 * math.prod(shape)) for name, shape in expected.items()], False
    checkpoint.check_tensors(with_mtp)
    found = [
        StoredTensor(name, dtype, tuple(shape), end - begin)
        for name, dtype, shape, _, begin, end in checkpoint.tensors()
        if with_mtp or not name.startswith("model.mtp.")
    ]
    return found, True


def stored_as(expected: dict[str, tuple[int, ...]], config_text: str, formats: Mapping[str, str]) -> list[StoredTensor]:
    """The expected tensors as `longcat convert` writes them from bf16."""
    uses, found = _core.packable_tensors(config_text), []
    for name, shape in expected.items():
        packed = packed_as(uses, name, formats)
        if packed is None:
            found.append(StoredTensor(name, "BF16", shape, 2 * math.prod(shape)))
        else:
            stored = tuple(_core.packed_shape(packed, shape[0], shape[1]))
            found.append(StoredTensor(f"{name}.{packed}", "U8", stored, math.prod(stored)))
    return found


def bits_of(parts: list[Part]) -> float:
    """Bits per weight, including scales, in the form that kernels read."""
    return 8 * sum(part.held for part in parts) / max(1, sum(part.weights for part in parts))


def parts_of(
    expected: dict[str, tuple[int, ...]],
    stored: list[StoredTensor],
    dtype: str,
    num_tokens: int,
    config: dict[str, object],
    shard: dict[str, object],
    draft_vocab: int = 0,
    quantization: str = "",
) -> list[Part]:
    """The components. touched, copied, read and held are those of the rank of `shard`.

    Args:
        draft_vocab: number of ids that are drafted; 0: all.
    """
    parts = {name: Part(name) for name, _ in _PARTS}
    with_mtp = any(name.startswith("model.mtp.") for name in expected)
    for name, shape in expected.items():
        if (named := part_of(name, parts)) is not None:
            parts[named].weights += math.prod(shape)
    for tensor in stored:
        if (named := part_of(tensor.name, parts)) is None:
            continue
        part = parts[named]
        part.stored += tensor.num_bytes
        shape = next((expected[n] for n in spellings(tensor.logical_name) if n in expected), tensor.shape)
        rows, cols = held_shape(tensor.logical_name, shape, config, shard)
        if rows == 0:
            continue
        looked_up = part.name in LOOKED_UP
        here = _bytes_of(tensor, rows, cols)
        copied = _copied_bytes(tensor, rows * cols, dtype, part.name == "N-gram tables")
        is_fp8 = tensor.dtype in ("F32", "BF16", "F16") and is_fp8_on_load(tensor.name, quantization)
        if is_fp8:
            halves = 2 if _COPIED_AS_STORED.search(tensor.name) else 1
            copied, here = halves * _fp8_bytes(rows, cols // halves), 0
        # a copy of the columns, after which the file's pages are dropped
        by_columns = (len(shape) == 2 and cols < shape[1]) or _COPIED_AS_STORED.search(tensor.name)
        if copied == 0 and by_columns:
            copied, here = here, 0
        part.touched += touched(here, num_tokens * rows // shape[0]) if looked_up else here
        part.copied += copied
        part.read += 0 if looked_up else copied or here
        is_head = part.name == ("word embedding" if config.get("tie_word_embeddings") else "head")
        is_packed = tensor.name.endswith(("int8_x8", "int8_x8_f16", "bf16_x8")) or (
            part.name == "head" and copied > 0 and dtype == "bf16" and not is_fp8
        )
        if with_mtp and is_head and is_packed:
            drafted = min(rows, -(-draft_vocab // _DRAFT_ROWS) * _DRAFT_ROWS or rows)
            parts["draft head"].copied = parts["draft head"].held = math.prod(
                _core.packed_shape("int4_x8", drafted, cols)
            )
        if not tensor.name.endswith("kv_b_proj.weight_scale_inv"):  # multiplied in when kv_b_proj is split per head
            part.held += copied or here
    return [part for part in parts.values() if part.stored or part.copied]


def held_shape(name: str, shape: tuple[int, ...], config: JsonObject, shard: JsonObject) -> tuple[int, int]:
    """Rows and columns of a tensor on a rank. 0 rows: the rank has none. A vector has one column."""
    rows, cols = (shape[0], shape[1]) if len(shape) == 2 else (shape[0], 1)

    def share(key: str, total: str) -> tuple[int, int]:
        begin, end = shard[key]
        return end - begin, int(config[total])

    if re.match(r"model\.(mtp\.)?embed_tokens\.|lm_head\.", name):
        return shard["vocab"][1] - shard["vocab"][0], cols
    if found := re.match(r"model\.(?:ngram_embeddings\.|oe_embed_)(\D+?)\.?(\d+)\.", name):
        first, last = shard["tables"].get(int(found[2]), (0, 0))
        if found[1] in ("post_projs", "proj"):  # complete for any rows of its table
            return (rows, cols) if first < last else (0, 0)
        return last - first, cols
    if re.search(r"\.(q_b_proj|kv_b_proj|o_proj)\.", name):
        mine, total = share("heads", "num_attention_heads")
        return (rows, cols * mine // total) if ".o_proj." in name else (rows * mine // total, cols)
    if found := re.search(r"\.mlps\.(\d)\.|\.transformer_layer\.mlp\.", name):
        if found[1] == "1" and not shard["adds_ffn"]:
            return 0, 0
        mine, total = share("ffn", "ffn_hidden_size")
        return (rows, cols * mine // total) if ".down_proj." in name else (rows * mine // total, cols)
    if found := re.search(r"\.experts\.(\d+)\.", name):
        first, last = shard["experts"]
        if not first <= int(found[1]) < last:
            return 0, 0
        mine, total = share("expert_ffn", "expert_ffn_hidden_size")
        return (rows, cols * mine // total) if ".down_proj." in name else (rows * mine // total, cols)
    return rows, cols


def _bytes_of(tensor: StoredTensor, rows: int, cols: int) -> int:
    """Size of `rows` x `cols` values in the tensor's stored format [bytes]."""
    suffix = tensor.name.rpartition(".")[2]
    if suffix in _core.PACKED_FORMATS:
        return math.prod(_core.packed_shape(suffix, rows, cols))
    if tensor.name.endswith("_scale_inv"):
        return _fp8_bytes(rows, cols) - rows * cols
    return rows * cols * (tensor.num_bytes // math.prod(tensor.shape))


def is_fp8_on_load(name: str, quantization: str) -> bool:
    """Whether a stored matrix becomes fp8 blocks; "fp8-core": whether it is one of those beside the experts."""
    is_expert = ".experts." in name
    wanted = quantization in ("fp8", "fp8-experts" if is_expert else "fp8-core")
    return wanted and _FP8_ON_LOAD.match(name) is not None


def _fp8_bytes(rows: int, cols: int) -> int:
    return rows * cols + -(-rows // FP8_BLOCK) * -(-cols // FP8_BLOCK) * 4


def part_of(tensor: str, parts: Mapping[str, object]) -> str | None:
    """Returns the name of the part that a tensor belongs to, if it is one of `parts`."""
    return next((part for part, pattern in _PARTS if part in parts and re.match(pattern, tensor)), None)


def _copied_bytes(tensor: StoredTensor, count: int, dtype: str, is_table: bool) -> int:
    """Size of the copy of `count` weights of a tensor in memory besides the files [bytes]."""
    if tensor.name.endswith("_scale_inv"):
        return 0
    narrow = tensor.dtype == "BF16" or dtype == "bf16"
    if _COPIED.search(tensor.name):
        return count * (4 if _COPIED_AS_F32.search(tensor.name) or not narrow else 2)
    converted = tensor.dtype == "F16" or (tensor.dtype == "F32" and dtype == "bf16" and not is_table)
    return count * (2 if dtype == "bf16" else 4) if converted else 0


def touched(num_bytes: int, num_tokens: int) -> int:
    """Size of the resident pages of a table after `num_tokens` random lookups [bytes]."""
    if num_bytes == 0:
        return 0
    windows = -(-num_bytes // _WINDOW)
    return int(num_bytes * (1 - (1 - 1 / windows) ** num_tokens))
