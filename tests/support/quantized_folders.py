"""Small checkpoints in the published layouts of AutoRound, GPTQ, compressed-tensors, MLX and FP8.

Each writer takes a random checkpoint, rounds its matrices, packs them, and returns the values that the packed integers
and scales mean. Those are computed here from the integers, not from the packed bytes. tests/oracle holds the packing
against the projects' own packages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.checkpoints import (
    decode,
    encode,
    from_bf16,
    from_e4m3,
    make_checkpoint,
    read_checkpoint,
    to_bf16,
    to_e4m3,
    write_safetensors,
)

# Widths that are whole groups of 128, or half of one.
CONFIG = {
    "num_layers": 1,
    "hidden_size": 384,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 128,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
}
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> (dtype, shape, bytes)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def is_linear(name: str) -> bool:
    """Whether tools for PyTorch quantise the tensor: the matrices of layers but for the router's."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight") or ".kv_a_proj" in name


def is_wide(name: str) -> bool:
    """As `is_linear`, but not the matrices of 64 columns."""
    return is_linear(name) and ".kv_b_proj" not in name


@dataclass
class Packed:
    """A matrix as one project stores it."""

    tensors: Mapping[str, tuple[str, np.ndarray]]  # part -> (dtype, array of its bits)
    values: np.ndarray  # [rows, columns] float32 that it means


Pack = Callable[[np.ndarray], Packed]


# --- integers -------------------------------------------------------------------------------------


def spread(groups: np.ndarray, size: int, width: int) -> np.ndarray:
    """[rows, groups] -> [rows, width]."""
    return groups.repeat(min(size, width), axis=1)[:, :width]


def rounded(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The bits and the values of scales."""
    if dtype == "BF16":
        return to_bf16(values), from_bf16(to_bf16(values))
    kind = {"F16": np.float16, "F32": np.float32}[dtype]
    return values.astype(kind), values.astype(kind).astype(np.float32)


def quantise(x: np.ndarray, bits: int, size: int, symmetric: bool, dtype: str):
    """Rounds groups of `size` columns.

    Returns:
        integers from 0 to 2^bits - 1 [rows, columns], zero points [rows, groups], scales as bits and as values
        [rows, groups], the values.
    """
    rows, width = x.shape
    size = width if size == -1 else size
    groups = math.ceil(width / size)
    padded = np.pad(x, [(0, 0), (0, groups * size - width)], mode="edge").reshape(rows, groups, size)
    top = (1 << bits) - 1
    if symmetric:
        zeros = np.full((rows, groups), 1 << bits - 1)
        stored, scales = rounded(np.abs(padded).max(axis=2) / ((1 << bits - 1) - 0.5), dtype)
    else:
        low, high = np.minimum(padded.min(axis=2), 0), np.maximum(padded.max(axis=2), 0)
        stored, scales = rounded((high - low) / top, dtype)
        zeros = np.clip(np.rint(-low / scales), 0, top).astype(int)
    wide = spread(scales, size, width)
    integers = np.clip(np.rint(x / wide) + spread(zeros, size, width), 0, top).astype(int)
    return integers, zeros, stored, scales, (wide * (integers - spread(zeros, size, width))).astype(np.float32)


def words(integers: np.ndarray, bits: int) -> np.ndarray:
    """[rows, n] -> [rows, ceil(n * bits / 32)] int32: the integers' bits in a row, lowest first."""
    rows, n = integers.shape
    each = integers[:, :, None] >> np.arange(bits) & 1
    stream = np.pad(each.reshape(rows, n * bits), [(0, 0), (0, -n * bits % 32)]).astype(np.uint8)
    return np.packbits(stream, axis=1, bitorder="little").view("<i4")


# --- the projects' layouts ------------------------------------------------------------------------


def gptq(bits=4, size=128, symmetric=True, added=1, dtype="F16", g_idx=None) -> Pack:
    """qweight, qzeros, scales, and g_idx where it is "plain" or "mixed"."""

    def pack(x: np.ndarray) -> Packed:
        width = x.shape[1]
        order = np.arange(width)
        if g_idx == "mixed":  # the columns of a group are anywhere, as desc_act leaves them
            order = np.argsort(np.arange(width) * 7 % width, kind="stable")
        integers, zeros, stored, _, values = quantise(x[:, order], bits, size, symmetric, dtype)
        back = np.argsort(order)
        tensors = {
            "qweight": ("I32", words(integers[:, back], bits).T),
            "qzeros": ("I32", words(zeros.T - added & (1 << bits) - 1, bits)),
            "scales": (dtype, stored.T),
        }
        if g_idx:
            tensors["g_idx"] = ("I32", (back // (width if size == -1 else size)).astype(np.int32))
        return Packed(tensors, values[:, back])

    return pack


def awq(size=128) -> Pack:
    """qweight, qzeros and scales of AWQ: words of 8 rows of the matrix, in an order of their own."""

    def interleave(integers: np.ndarray) -> np.ndarray:
        columns, rows = integers.shape
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # the row in each nibble
        return words(integers.reshape(columns, rows // 8, 8)[:, :, order].reshape(columns, rows), 4)

    def pack(x: np.ndarray) -> Packed:
        integers, zeros, stored, _, values = quantise(x, 4, size, False, "F16")
        tensors = {"qweight": ("I32", interleave(integers.T)), "qzeros": ("I32", interleave(zeros.T))}
        return Packed(tensors | {"scales": ("F16", stored.T)}, values)

    return pack


def ct_packed(bits=4, size=128, symmetric=True, dtype="BF16", zero="packed") -> Pack:
    """pack-quantized of compressed-tensors; size -1: one scale a row."""

    def pack(x: np.ndarray) -> Packed:
        integers, zeros, stored, _, values = quantise(x, bits, size, symmetric, dtype)
        tensors = {
            "weight_packed": ("I32", words(integers, bits)),
            "weight_scale": (dtype, stored),
            "weight_shape": ("I64", np.array(x.shape, np.int64)),
        }
        if not symmetric and zero == "packed":
            tensors["weight_zero_point"] = ("I32", words(zeros.T, bits).T)
        elif not symmetric:
            tensors["weight_zero_point"] = ("I8", (zeros - (1 << bits - 1)).astype(np.int8))
        return Packed(tensors, values)

    return pack


def ct_int8(dtype="BF16", size=-1) -> Pack:
    def pack(x: np.ndarray) -> Packed:
        integers, _, stored, _, values = quantise(x, 8, size, True, dtype)
        return Packed({"weight": ("I8", (integers - 128).astype(np.int8)), "weight_scale": (dtype, stored)}, values)

    return pack


def mxfp4(parts=("weight_packed", "weight_scale")) -> Pack:
    def pack(x: np.ndarray) -> Packed:
        rows, width = x.shape
        blocks = x.reshape(rows, -1, 32)
        exponents = np.floor(np.log2(np.abs(blocks).max(axis=2))).astype(int) - 2
        scaled = blocks / np.exp2(exponents)[:, :, None]
        codes = np.abs(np.abs(scaled)[..., None] - E2M1).argmin(axis=-1)
        values = np.copysign(E2M1[codes], scaled) * np.exp2(exponents)[:, :, None]
        nibbles = (codes + 8 * np.signbit(scaled)).reshape(rows, width)
        data = words(nibbles, 4)
        packed = ("U8", data.view(np.uint8)) if parts[0] == "weight_packed" else ("U32", data.view(np.uint32))
        scales = ("U8", (exponents + 127).astype(np.uint8))
        return Packed({parts[0]: packed, parts[1]: scales}, values.reshape(rows, width).astype(np.float32))

    return pack


def fp8(block=None, scale="weight_scale", dtype="BF16", per="row") -> Pack:
    """weight in F8_E4M3 with scales of blocks, or of rows or the whole matrix."""

    def pack(x: np.ndarray) -> Packed:
        rows, width = x.shape
        high, wide = block or ((1, width) if per == "row" else (rows, width))
        padded = np.pad(np.abs(x), [(0, -rows % high), (0, -width % wide)])
        most = padded.reshape(len(padded) // high, high, -1, wide).max(axis=(1, 3))
        stored, scales = rounded(most / 448, dtype)
        grown = scales.repeat(high, 0).repeat(wide, 1)[:rows, :width]
        codes = to_e4m3(x / grown)
        stored = stored.reshape(1) if per == "matrix" and not block else stored
        return Packed({"weight": ("F8_E4M3", codes), scale: (dtype, stored)}, from_e4m3(codes) * grown)

    return pack


def mlx(bits=4, size=64, dtype="BF16", exact=False) -> Pack:
    """weight, scales and biases; with `exact` each bias is a whole multiple of its scale."""

    def pack(x: np.ndarray) -> Packed:
        rows, width = x.shape
        if exact:
            integers, zeros, stored, scales, values = quantise(x, bits, size, True, dtype)
            bias, offsets = rounded(-scales * zeros, dtype)
            assert (offsets == -scales * zeros).all()
        else:
            groups = x.reshape(rows, -1, size)
            low, high = groups.min(axis=2), groups.max(axis=2)
            stored, scales = rounded((high - low) / ((1 << bits) - 1), dtype)
            bias, offsets = rounded(low, dtype)
            wide, offset = spread(scales, size, width), spread(offsets, size, width)
            integers = np.clip(np.rint((x - offset) / wide), 0, (1 << bits) - 1).astype(int)
            values = wide * integers.astype(np.float32) + offset
        tensors = {"weight": ("U32", words(integers, bits).view(np.uint32)), "scales": (dtype, stored)}
        return Packed(tensors | {"biases": (dtype, bias)}, values)

    return pack


# --- folders --------------------------------------------------------------------------------------


def write_folder(
    folder: Path,
    pack: Pack | Callable[[str], Pack | None],
    fields: Mapping,
    *,
    choose: Callable[[str], bool] = is_linear,
    by_name: bool = False,
    rename: Callable[[Stored], Stored] = lambda stored: stored,
    mtp: bool = False,
    ngram: bool = True,
    overrides: Mapping | None = None,
) -> dict[str, np.ndarray]:
    """Writes a quantised checkpoint.

    Args:
        pack: of the matrices that `choose` takes; with `by_name` it gives the packing of each of them.
        fields: added to config.json.
        rename: changes names, or stacks experts.
        mtp, ngram, overrides: as make_checkpoint takes.
    Returns:
        name -> the values that the folder means.
    """
    plain = folder.with_name(folder.name + "-plain")
    config = make_checkpoint(plain, seed=5, dtype="BF16", mtp=mtp, ngram=ngram, config_overrides=overrides or CONFIG)
    stored: Stored = {}
    means = {}
    for name, values in read_checkpoint(plain).items():
        packing = (pack(name) if by_name else pack) if choose(name) else None
        if packing is None:
            dtype = "F32" if ".router." in name else "BF16"
            stored[name] = (dtype, values.shape, encode(values, dtype))
            means[name] = values
            continue
        packed = packing(values)
        means[name] = packed.values
        for part, (dtype, bits) in packed.tensors.items():
            stored[name.removesuffix("weight") + part] = (dtype, bits.shape, np.ascontiguousarray(bits).tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | dict(fields)))
    write_safetensors(folder / "model.safetensors", rename(stored))
    return means


def stack(parts: list[tuple[str, tuple[int, ...], bytes]]) -> tuple[str, tuple[int, ...], bytes]:
    dtype, shape, _ = parts[0]
    return dtype, (len(parts), *shape), b"".join(data for _, _, data in parts)


def mlx_names(stored: Stored) -> Stored:
    """The names of mlx-lm: experts in switch_mlp, the word embedding inside the N-gram embedding."""
    out: Stored = {}
    for name, tensor in stored.items():
        if ".mlp.experts." not in name:
            out[name.replace("model.embed_tokens.", "model.ngram_embeddings.word_embeddings.")] = tensor
        elif ".experts.0." in name:
            experts = range(CONFIG["n_routed_experts"])
            members = [stored[name.replace(".experts.0.", f".experts.{e}.")] for e in experts]
            out[name.replace(".experts.0.", ".switch_mlp.")] = stack(members)
    return out


def mlx_names_by_heads(stored: Stored) -> Stored:
    """As `mlx_names`, with kv_b_proj in two stacks of heads."""
    out: Stored = {}
    nope, value, rank = (CONFIG[name] for name in ("qk_nope_head_dim", "v_head_dim", "kv_lora_rank"))
    for name, tensor in mlx_names(stored).items():
        if not name.endswith(".kv_b_proj.weight"):
            out[name] = tensor
            continue
        by_heads = decode(tensor[2], tensor[0], tensor[1]).reshape(-1, nope + value, rank)
        for half, part in (("embed_q", by_heads[:, :nope].transpose(0, 2, 1)), ("unembed_out", by_heads[:, nope:])):
            out[name.replace("kv_b_proj", half)] = (tensor[0], part.shape, encode(part, tensor[0]))
    return out


def fused_names(stored: Stored) -> Stored:
    """The stacks of transformers 5: mlp.experts.gate_up_proj and mlp.experts.down_proj, with their scales."""
    out: Stored = {}
    for name, tensor in stored.items():
        if ".mlp.experts." not in name:
            out[name] = tensor
        elif ".experts.0." in name and ".up_proj." not in name:
            members = []
            for e in range(CONFIG["n_routed_experts"]):
                gate = name.replace(".experts.0.", f".experts.{e}.")
                dtype, shape, data = stored[gate]
                if ".gate_proj." in name:
                    _, up, more = stored[gate.replace(".gate_proj.", ".up_proj.")]
                    shape, data = (shape[0] + up[0], *shape[1:]), data + more
                members.append((dtype, shape, data))
            module, _, part = name.rpartition(".")
            module = module.replace(".experts.0.gate_proj", ".experts.gate_up_proj").replace(".experts.0.", ".experts.")
            out[module + part.removeprefix("weight")] = stack(members)
    return out
