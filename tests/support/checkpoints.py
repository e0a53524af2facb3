"""Random checkpoints in the official Hugging Face layout: small, deterministic, made in milliseconds.

`make_checkpoint(folder, seed=3)` writes config.json and safetensors files that any loader of the architecture
reads; `read_checkpoint(folder)` reads them (or any checkpoint) back as float32. The same seed and overrides give the
same bytes everywhere and always: the random numbers are made from integers and depend on (seed, tensor name) alone.

Names, shapes and spreads of the tensors are the product's own (`longcat.checkpoint.random_weights`). The reference
model reads tensors by names of its own, so what the product expects is still held against something that it did not
write.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from longcat.checkpoint.random_values import TensorSpec, random_bits
from longcat.checkpoint.random_weights import AUXILIARY_FILE, TINY_CONFIG, tensor_specs

FP8_BLOCK = 128  # one weight_scale_inv per 128 x 128 block of an FP8 matrix
FP8_MAX = 448.0  # largest finite e4m3 value
NGRAM_FIELDS = ("ngram_vocab_size_ratio", "emb_neighbor_num", "emb_split_num")


def forget(path: Path) -> None:
    """Gives the pages of a file back that no process has mapped."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all_but(path: Path, pattern: str) -> None:
    """Brings the tensors of a safetensors file into memory in whose names the pattern is not found, and no more."""
    with path.open("rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        start = opened.tell()
        forget(path)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for name, entry in header.items():
            if not re.search(pattern, name):
                begin, end = entry.get("data_offsets", (0, 0))
                os.pread(opened.fileno(), end - begin, start + begin)


def _yarn(**overrides) -> dict:
    return {**TINY_CONFIG["rope_scaling"], **overrides}


# Arguments of make_checkpoint by name: the shapes on which every implementation is compared.
VARIANTS: dict[str, dict] = {
    "lite": {},
    "flash_chat": {"ngram": False, "config_overrides": {"rope_scaling": None, "rope_theta": 1e7}},
    "no_yarn": {"config_overrides": {"rope_scaling": None}},
    # theta and rotations chosen so that the ramp between kept and interpolated frequencies has inner points
    "yarn_ramp": {
        "config_overrides": {
            "qk_rope_head_dim": 16,
            "rope_theta": 100.0,
            "rope_scaling": _yarn(beta_fast=4, beta_slow=0.5),
        }
    },
    # mscale != mscale_all_dim: cos and sin are scaled too; 40 -> 400 positions
    "yarn_mscale": {
        "config_overrides": {
            "max_position_embeddings": 400,
            "rope_scaling": _yarn(factor=10, original_max_position_embeddings=40, mscale=0.7, mscale_all_dim=1.3),
        }
    },
    # no mscale fields: cos and sin carry the whole factor, the softmax scale none
    "yarn_plain": {
        "config_overrides": {
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        }
    },
    "n3": {"config_overrides": {"emb_neighbor_num": 3, "emb_split_num": 2}},
    "n5": {"config_overrides": {"emb_neighbor_num": 5, "emb_split_num": 3, "ngram_vocab_size_ratio": 5}},
    "k1": {"config_overrides": {"emb_split_num": 1, "ngram_vocab_size_ratio": 7}},
    "odd": {
        "config_overrides": {
            "vocab_size": 131,
            "hidden_size": 84,
            "num_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": 21,
            "kv_lora_rank": 13,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4,
            "v_head_dim": 10,
            "ffn_hidden_size": 50,
            "expert_ffn_hidden_size": 18,
            "n_routed_experts": 5,
            "zero_expert_num": 4,
        }
    },
    "odd_small": {
        "config_overrides": {
            "vocab_size": 101,
            "hidden_size": 60,
            "num_layers": 1,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "q_lora_rank": 17,
            "kv_lora_rank": 11,
            "qk_nope_head_dim": 7,
            "qk_rope_head_dim": 6,
            "v_head_dim": 5,
            "ffn_hidden_size": 37,
            "expert_ffn_hidden_size": 9,
            "emb_neighbor_num": 5,
            "emb_split_num": 3,
            "rms_norm_eps": 2e-3,
        }
    },
    "many_experts": {
        "config_overrides": {
            "n_routed_experts": 16,
            "zero_expert_num": 8,
            "moe_topk": 7,
            "routed_scaling_factor": 2.5,
        }
    },
    "no_zero_experts": {"config_overrides": {"zero_expert_num": 0, "moe_topk": 1}},
}

# The smallest that all kernels for few tokens on tensor cores take (cuda/gemm/few_tokens.h), of one layer.
TENSOR_CORE_SHAPES = {
    "hidden_size": 256,
    "num_layers": 1,
    "q_lora_rank": 128,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 64,
    "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 128,
    "n_routed_experts": 20,
    "zero_expert_num": 364,
    "moe_topk": 12,
    "emb_neighbor_num": 3,
    "emb_split_num": 2,
}

# LongCat-Flash-Lite-Sparse at toy sizes. transformers has no such model: the reference is reference.sparse.
_SPARSE = {
    "architectures": ["LongcatCausalLM"],
    "attention_method": "LSA",
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 24,
    "index_init_tokens": 2,
    "index_local_tokens": 8,
    "index_k_norm_type": "rms",
    "cli_factor": 2,
}
SPARSE_VARIANTS: dict[str, dict] = {
    "sparse": {"config_overrides": _SPARSE},
    # more selected positions than a block of the cache has, and most of them free
    "sparse_wide": {"config_overrides": {**_SPARSE, "index_topk": 80, "index_init_tokens": 1, "index_local_tokens": 3}},
    # sizes that fill no register, no first positions, and an indexer in every sub-layer
    "sparse_odd": {
        "config_overrides": {
            **VARIANTS["odd"]["config_overrides"],
            **_SPARSE,
            "index_n_heads": 3,
            "index_head_dim": 10,
            "index_topk": 21,
            "index_init_tokens": 0,
            "index_local_tokens": 5,
            "cli_factor": 1,
        }
    },
}


# --- random numbers -------------------------------------------------------------------------------


def random_uniform(seed: int, name: str, shape: tuple[int, ...], mean: float, std: float) -> np.ndarray:
    """[*shape] float32, uniform around `mean` with standard deviation `std`; same bits on every platform."""
    unit = (random_bits(seed, name, math.prod(shape)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (mean + std * math.sqrt(12) * (unit - 0.5)).astype(np.float32).reshape(shape)


def random_token_ids(seed: int, length: int, vocab_size: int = 128, eos_token_id: int = 2) -> list[int]:
    """A random prompt with the segment boundaries that N-gram hashing must get right.

    Args:
        seed: any integer; odd seeds begin with EOS.
        length: number of tokens.
        vocab_size, eos_token_id: of the config.
    Returns:
        [length] ids: single EOS tokens, a run of three, two with one token between, one at the very end.
    """
    bits = random_bits(seed, "token_ids", length)
    token_ids = [int(b % np.uint64(vocab_size)) for b in bits]
    for position in (5, 20, 21, 22, 40, 42, length - 1, *([0] if seed % 2 else [])):
        if position < length:
            token_ids[position] = eos_token_id
    return token_ids


# --- number formats -------------------------------------------------------------------------------


def to_bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits (uint16), nearest even."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _e4m3_values() -> np.ndarray:
    """[128] float32: the value of each non-negative e4m3fn code; code 127 is NaN, there is no infinity."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    values[127] = np.nan
    return values.astype(np.float32)


E4M3_VALUES = _e4m3_values()


def to_e4m3(x: np.ndarray) -> np.ndarray:
    """float32 -> e4m3fn codes (uint8), nearest even, saturating at +-448."""
    finite = E4M3_VALUES[:127].astype(np.float64)
    middle = (finite[:-1] + finite[1:]) / 2
    magnitude = np.abs(x).astype(np.float64)
    code = np.searchsorted(middle, magnitude, side="left")  # a tie lands on the lower code
    tie = magnitude == middle[np.minimum(code, 125)]
    code = np.where(tie & (code % 2 == 1), code + 1, code)
    return (code | np.where(np.signbit(x), 128, 0)).astype(np.uint8)


def from_e4m3(codes: np.ndarray) -> np.ndarray:
    """e4m3fn codes (uint8) -> float32."""
    return np.where(codes & 128, np.float32(-1), np.float32(1)) * E4M3_VALUES[codes & 127]


def _spread_blocks(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[ceil(out / 128), ceil(in / 128)] -> [out, in]: every element's scale."""
    return scale.repeat(FP8_BLOCK, 0).repeat(FP8_BLOCK, 1)[: shape[0], : shape[1]]


def quantize_fp8_blocks(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Block-quantises a matrix as the official FP8 checkpoints do.

    Args:
        x: [out, in] float32.
    Returns:
        codes [out, in] uint8 (e4m3fn), scale_inv [ceil(out / 128), ceil(in / 128)] float32; W = decode(codes)
        * scale_inv.
    """
    rows, cols = (math.ceil(n / FP8_BLOCK) for n in x.shape)
    scale = np.empty((rows, cols), np.float32)
    for r in range(rows):
        for c in range(cols):
            block = x[r * FP8_BLOCK : (r + 1) * FP8_BLOCK, c * FP8_BLOCK : (c + 1) * FP8_BLOCK]
            scale[r, c] = max(float(np.abs(block).max()), 1e-12) / FP8_MAX
    return to_e4m3(x / _spread_blocks(scale, x.shape)), scale


def encode(x: np.ndarray, dtype: str) -> bytes:
    """float32 -> the bytes of safetensors dtype "F32", "BF16" or "F16"."""
    if dtype == "F32":
        return np.ascontiguousarray(x, dtype="<f4").tobytes()
    return (to_bf16(x) if dtype == "BF16" else x.astype("<f2")).tobytes()


def decode(raw: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes of a safetensors tensor -> float32 [*shape]. Raises ValueError on any other dtype."""
    if dtype == "F32":
        return np.frombuffer(raw, "<f4").reshape(shape)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32).reshape(shape)
    if dtype == "BF16":
        return from_bf16(np.frombuffer(raw, "<u2")).reshape(shape)
    if dtype == "F8_E4M3":
        return from_e4m3(np.frombuffer(raw, np.uint8)).reshape(shape)
    raise ValueError(f"safetensors dtype {dtype} is not used by this architecture")


# --- safetensors ----------------------------------------------------------------------------------


def write_safetensors(path: Path | str, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Writes one safetensors file.

    Args:
        path: file to create.
        tensors: name -> (dtype tag such as "BF16", shape, bytes-like); stored in the given order. Nothing is
            checked, so that tests can write broken files with it.
    """
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def read_safetensors(path: Path | str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The inverse of write_safetensors: name -> (dtype tag, shape, bytes)."""
    raw = Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", raw)
    start = 8 + header_bytes
    tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), raw[start + begin : start + end])
    return tensors


def read_config(folder: Path | str) -> dict:
    """config.json of a checkpoint folder."""
    return json.loads((Path(folder) / "config.json").read_text())


def read_checkpoint(folder: Path | str) -> dict[str, np.ndarray]:
    """Reads every tensor of a checkpoint folder, FP8 matrices multiplied with their block scales.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and its shards.
    Returns:
        name -> float32 array; `weight_scale_inv` tensors are used up and left out.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    weights = {}
    for file in files:
        for name, (dtype, shape, raw) in read_safetensors(folder / file).items():
            weights[name] = decode(raw, dtype, shape)
    for name in [n for n in weights if n.endswith(".weight_scale_inv")]:
        weight = name.removesuffix("_scale_inv")
        weights[weight] = weights[weight] * _spread_blocks(weights.pop(name), weights[weight].shape)
    return weights


# --- the architecture's tensors -------------------------------------------------------------------


def ngram_table_rows(config: Mapping) -> list[int]:
    """Rows of each N-gram table: m + 2t + 1 with m = ratio * vocab_size; empty without N-gram embedding."""
    if not config.get("ngram_vocab_size_ratio"):
        return []
    tables = config["emb_split_num"] * (config["emb_neighbor_num"] - 1)
    return [int(config["ngram_vocab_size_ratio"] * config["vocab_size"]) + 2 * t + 1 for t in range(tables)]


def _stored(spec: TensorSpec, values: np.ndarray, name: str, dtype: str) -> dict:
    """name -> (dtype tag, shape, bytes) of a tensor in a checkpoint of `dtype`; two entries if FP8."""
    if spec.kind == "router":
        return {name: ("F32", spec.shape, encode(values, "F32"))}
    if dtype != "FP8":
        return {name: (dtype, spec.shape, encode(values, dtype))}
    if spec.kind != "linear":
        return {name: ("BF16", spec.shape, encode(values, "BF16"))}
    codes, scale = quantize_fp8_blocks(values)
    return {
        name: ("F8_E4M3", spec.shape, codes.tobytes()),
        f"{name}_scale_inv": ("F32", scale.shape, encode(scale, "F32")),
    }


def make_config(config_overrides: Mapping | None = None, ngram: bool = True, dtype: str = "F32") -> dict:
    """TINY_CONFIG with overrides; without `ngram` the fields and the architecture of LongCat-Flash-Chat."""
    config = {**TINY_CONFIG, **(config_overrides or {})}
    config["torch_dtype"] = {"F32": "float32", "F16": "float16"}.get(dtype, "bfloat16")
    if not ngram:
        config = {k: v for k, v in config.items() if k not in NGRAM_FIELDS}
        config |= {"architectures": ["LongcatFlashForCausalLM"], "model_type": "longcat_flash"}
    elif config["hidden_size"] % (config["emb_split_num"] * (config["emb_neighbor_num"] - 1)):
        raise ValueError("hidden_size must be a multiple of emb_split_num * (emb_neighbor_num - 1)")
    return config


def make_checkpoint(
    folder: Path | str,
    seed: int = 0,
    dtype: str = "F32",
    shards: int = 1,
    config_overrides: Mapping | None = None,
    ngram: bool = True,
    mtp: bool = False,
) -> dict:
    """Writes a random checkpoint in the official layout.

    Args:
        folder: created when missing.
        seed: of the weights.
        dtype: "F32", "BF16", "F16", or "FP8" (e4m3 blocks in BF16 surroundings); the router is F32 always.
        shards: number of safetensors files; with more than one an index, and the MTP tensors in a file of
            their own.
        config_overrides: fields of config.json that differ from TINY_CONFIG.
        ngram: False for LongCat-Flash-Chat's shape: no N-gram tables.
        mtp: with `model.mtp.*`.
    Returns:
        the config, as written to config.json.
    Raises:
        ValueError: sizes that do not fit together.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(config_overrides, ngram, dtype)
    specs = tensor_specs(config, mtp)
    tensors = {}
    for name, spec in specs.items():
        values = random_uniform(seed, name, spec.shape, spec.mean, spec.std)
        if spec.std_tail:
            rows, std = spec.std_tail
            values[-rows:] *= np.float32(std / spec.std)
        tensors |= _stored(spec, values, name, dtype)
    if dtype == "FP8":
        matrices = [n for n, s in specs.items() if len(s.shape) == 2 and s.kind != "linear"]
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            "ignored_layers": [n.removesuffix(".weight") for n in matrices],
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return config

    files = {}
    trunk = [n for n in tensors if not n.startswith("model.mtp.")]
    for s in range(shards):
        names = trunk[s * len(trunk) // shards : (s + 1) * len(trunk) // shards]
        files[f"model-{s + 1:05d}-of-{shards:05d}.safetensors"] = names
    if mtp:
        files[AUXILIARY_FILE] = [n for n in tensors if n.startswith("model.mtp.")]
    for file, names in files.items():
        write_safetensors(folder / file, {n: tensors[n] for n in names})
    index = {
        "metadata": {"total_size": sum(len(data) for _, _, data in tensors.values())},
        "weight_map": {n: file for file, names in files.items() for n in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return config
