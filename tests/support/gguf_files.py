"""Writes GGUF files: any header, and models of this architecture with random blocks."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Name of a type -> its number, values and bytes of a block, offsets of the float16 scales.
TYPES: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "F32": (0, 1, 4, ()),
    "F16": (1, 1, 2, ()),
    "Q4_0": (2, 32, 18, (0,)),
    "Q4_1": (3, 32, 20, (0, 2)),
    "Q5_0": (6, 32, 22, (0,)),
    "Q5_1": (7, 32, 24, (0, 2)),
    "Q8_0": (8, 32, 34, (0,)),
    "Q2_K": (10, 256, 84, (80, 82)),
    "Q3_K": (11, 256, 110, (108,)),
    "Q4_K": (12, 256, 144, (0, 2)),
    "Q5_K": (13, 256, 176, (0, 2)),
    "Q6_K": (14, 256, 210, (208,)),
    "IQ4_NL": (20, 32, 18, (0,)),
    "BF16": (30, 1, 2, ()),
}
NUMBERS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "u64": 10, "i64": 11, "f64": 12}
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}

# A model that the smallest blocks fit: 1 layer, 2 heads, 3 + 1 experts, 8 tables of 32 columns.
CONFIG: dict[str, Any] = {
    **{"block_count": 2, "context_length": 640, "embedding_length": 256, "attention.head_count": 2},
    **{"feed_forward_length": 256, "expert_feed_forward_length": 256, "expert_count": 3, "expert_zero_count": 1},
    **{"expert_used_count": 2, "expert_weights_scale": 6.0, "attention.layer_norm_rms_epsilon": 1e-5},
    **{"attention.q_lora_rank": 32, "attention.kv_lora_rank": 64, "attention.key_length_mla": 48},
    **{"attention.value_length_mla": 32, "rope.dimension_count": 16, "rope.freq_base": 10000.0, "vocab_size": 288},
    **{"ngram.neighbor_num": 3, "ngram.split_num": 4, "ngram.vocab_size_ratio": 2},
    **{"rope.scaling.type": "yarn", "rope.scaling.factor": 10.0, "rope.scaling.original_context_length": 64},
    **{"rope.scaling.yarn_log_multiplier": 0.1},
}
SPARSE: dict[str, Any] = {
    **{"attention.indexer.head_count": 2, "attention.indexer.key_length": 32, "attention.indexer.top_k": 64},
    **{"attention.indexer.init_tokens": 4, "attention.indexer.local_tokens": 8, "attention.indexer.cli_factor": 2},
    **{"attention.indexer.k_norm_type": "rms", "attention.indexer.rope_interleave": True},
}
TOKENS = ["<longcat_unk>", "<longcat_s>", "</longcat_s>", "<longcat_pad>"]

Tensor = tuple[str, str, tuple[int, ...], bytes]  # name, type, shape with the slowest dimension first, data


def string(text: str) -> bytes:
    """A string as the file has it."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(item: Any, kind: str | None = None) -> bytes:
    """A value with its type in front. Integers are u32 and floats f32, unless `kind` says otherwise."""
    if isinstance(item, bool):
        return struct.pack("<IB", 7, item)
    if isinstance(item, str):
        return struct.pack("<I", 8) + string(item)
    if isinstance(item, (list, tuple)):
        if item and isinstance(item[0], str):
            return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(map(string, item))
        number = NUMBERS[kind or "i32"]
        return struct.pack(f"<IIQ{len(item)}{_CODES[number]}", 9, number, len(item), *item)
    number = NUMBERS[kind or ("f32" if isinstance(item, float) else "u32")]
    return struct.pack(f"<I{_CODES[number]}", number, item)


def header(
    metadata: Mapping[str, Any],
    tensors: Sequence[tuple[str, int, Sequence[int], int]],
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    """A header. tensors: (name, number of the type, shape with the fastest dimension first, offset)."""
    parts = [magic, struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, item in metadata.items():
        parts.append(string(key) + (item if isinstance(item, bytes) else value(item)))
    for name, number, dims, offset in tensors:
        parts.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, number, offset))
    return b"".join(parts)


def write(path: Path, metadata: Mapping[str, Any], tensors: Sequence[Tensor], alignment: int = 32) -> None:
    """Writes a file. Values of `metadata` that are bytes are written as they are, with their type."""
    entries, offset = [], 0
    for name, kind, shape, data in tensors:
        entries.append((name, TYPES[kind][0], tuple(reversed(shape)), offset))
        offset += len(data) + -len(data) % alignment
    with open(path, "wb") as file:
        head = header(metadata, entries)
        file.write(head + bytes(-len(head) % alignment))
        for *_, data in tensors:
            file.write(data + bytes(-len(data) % alignment))


def blocks(rng: np.random.Generator, kind: str, num_values: int, spread: float = 0.02) -> bytes:
    """Random values of a type: random bytes with scales that make values of this size."""
    number, size, num_bytes, scales = TYPES[kind]
    if size == 1:
        values = rng.normal(0, spread, num_values).astype(np.float32)
        if kind == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        return values.astype(np.float16 if kind == "F16" else np.float32).tobytes()
    out = rng.integers(0, 256, (num_values // size, num_bytes), dtype=np.uint8)
    largest = 127 * 32 if kind == "Q6_K" else 63 * 15 if size == 256 else 127 if number in (8, 20) else 15
    for at in scales:
        half = (rng.uniform(1, 4, len(out)) * spread / largest).astype(np.float16)
        out[:, at : at + 2] = half.view(np.uint8).reshape(-1, 2)
    return out.tobytes()


def make_model(
    path: Path,
    type_of: Callable[[str], str] = lambda name: "Q8_0",
    *,
    sparse: bool = False,
    mtp: bool = False,
    seed: int = 0,
    metadata: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    files: int = 1,
) -> list[Tensor]:
    """Writes a model with random weights.

    Args:
        path: of the file; of several, the name before "-00001-of-...".
        type_of: tensor -> type; norms and the router's bias are F32 all the same.
        metadata: more of it, in full.
        changes: other values for CONFIG.
    Returns:
        The tensors that were written.
    """
    arch = "longcat-flash-sparse" if sparse else "longcat-flash-ngram"
    config = CONFIG | (SPARSE if sparse else {}) | dict(changes or {})
    fields = {"general.architecture": arch} | {f"{arch}.{name}": item for name, item in config.items()}
    if mtp:
        fields |= {f"{arch}.block_count": config["block_count"] + 1, f"{arch}.nextn_predict_layers": 1}
    fields |= dict(metadata or {})
    rng = np.random.default_rng(seed)
    tensors: list[Tensor] = []
    for name, shape in shapes(config, sparse, mtp).items():
        is_vector = len(shape) == 1
        data = (
            rng.uniform(0.5, 1.5, shape).astype(np.float32).tobytes()
            if "norm" in name
            else blocks(rng, "F32" if is_vector else type_of(name), math.prod(shape))
        )
        tensors.append((name, "F32" if is_vector or "norm" in name else type_of(name), shape, data))
    if files == 1:
        write(path, fields, tensors)
        return tensors
    step = -(-len(tensors) // files)
    for index in range(files):
        own = {"split.no": value(index, "u16"), "split.count": value(files, "u16")}
        own |= {"split.tensors.count": value(len(tensors), "i32")}
        part = path.with_name(f"{path.name}-{index + 1:05d}-of-{files:05d}.gguf")
        write(part, fields | own if index == 0 else own, tensors[index * step : (index + 1) * step])
    return tensors


def vocabulary(size: int = CONFIG["vocab_size"]) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer with a token for each byte, `size` in all."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    chars = sorted([*printable, *(0x100 + i for i in range(len(others)))])
    tokens = TOKENS + [chr(code) for code in chars]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2")]
    tokens += ["".join(pair) for pair in merges]
    tokens += [f"<longcat_{i}>" for i in range(size - len(tokens))]
    kinds = [3] * 4 + [1] * (256 + len(merges)) + [4] * (size - 260 - len(merges))
    return {
        **{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "longcat", "tokenizer.ggml.tokens": tokens},
        **{"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": [" ".join(pair) for pair in merges]},
        **{"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 3},
        "tokenizer.chat_template": "{% for m in messages %}<longcat_{{ m.role }}>{{ m.content }}{% endfor %}",
        **{"general.sampling.top_k": value(4, "i32"), "general.sampling.temp": 0.7},
    }


def shapes(config: Mapping[str, Any], sparse: bool, mtp: bool) -> dict[str, tuple[int, ...]]:
    """name -> shape, slowest dimension first, in the order of a real file."""
    hidden, vocab = config["embedding_length"], config["vocab_size"]
    tables = (config["ngram.neighbor_num"] - 1) * config["ngram.split_num"]
    rows = config["ngram.vocab_size_ratio"] * vocab
    out: dict[str, tuple[int, ...]] = {}
    for table in range(tables):
        out[f"ngram_embd.{table}.weight"] = (rows + 2 * table + 1, hidden // tables)
        out[f"ngram_proj.{table}.weight"] = (hidden, hidden // tables)
    out |= {"output.weight": (vocab, hidden), "output_norm.weight": (hidden,), "token_embd.weight": (vocab, hidden)}
    for block in range(config["block_count"]):
        out |= _attention(f"blk.{block}", config, sparse and block % 2 == 0)
        if block % 2:
            out |= _ffn(f"blk.{block}", config["feed_forward_length"], hidden, "")
            continue
        out |= _ffn(f"blk.{block}", config["feed_forward_length"], hidden, "_shexp")
        out |= {
            name: (config["expert_count"], *shape)
            for name, shape in _ffn(f"blk.{block}", config["expert_feed_forward_length"], hidden, "_exps").items()
        }
        outputs = config["expert_count"] + config["expert_zero_count"]
        out |= {f"blk.{block}.ffn_gate_inp.weight": (outputs, hidden), f"blk.{block}.exp_probs_b.bias": (outputs,)}
    if mtp:
        name = f"blk.{config['block_count']}"
        out |= _attention(name, config, sparse) | _ffn(name, config["feed_forward_length"], hidden, "")
        out |= {
            f"{name}.nextn.eh_proj.weight": (hidden, 2 * hidden),
            f"{name}.nextn.embed_tokens.weight": (vocab, hidden),
        }
        out |= {f"{name}.nextn.{norm}.weight": (hidden,) for norm in ("enorm", "hnorm", "shared_head_norm")}
    return out


def _ffn(name: str, width: int, hidden: int, suffix: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.ffn_gate{suffix}.weight": (width, hidden),
        f"{name}.ffn_up{suffix}.weight": (width, hidden),
        f"{name}.ffn_down{suffix}.weight": (hidden, width),
    }


def _attention(name: str, config: Mapping[str, Any], indexer: bool) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["embedding_length"], config["attention.head_count"]
    q_rank, rank = config["attention.q_lora_rank"], config["attention.kv_lora_rank"]
    width, rope = config["attention.key_length_mla"], config["rope.dimension_count"]
    v = config["attention.value_length_mla"]
    out = {
        f"{name}.attn_norm.weight": (hidden,),
        f"{name}.ffn_norm.weight": (hidden,),
        f"{name}.attn_q_a.weight": (q_rank, hidden),
        f"{name}.attn_q_a_norm.weight": (q_rank,),
        f"{name}.attn_q_b.weight": (heads * width, q_rank),
        f"{name}.attn_kv_a_mqa.weight": (rank + rope, hidden),
        f"{name}.attn_kv_a_norm.weight": (rank,),
        f"{name}.attn_k_b.weight": (heads, rank, width - rope),
        f"{name}.attn_v_b.weight": (heads, v, rank),
        f"{name}.attn_output.weight": (hidden, heads * v),
    }
    if indexer:
        index_heads, dim = config["attention.indexer.head_count"], config["attention.indexer.key_length"]
        out |= {
            f"{name}.indexer.attn_q_b.weight": (index_heads * dim, q_rank),
            f"{name}.indexer.attn_k.weight": (dim, hidden),
            f"{name}.indexer.k_norm.weight": (dim,),
            f"{name}.indexer.proj.weight": (index_heads, hidden),
        }
    return out


def config_of(folder: Path) -> dict[str, Any]:
    """config.json of a converted folder."""
    return json.loads((folder / "config.json").read_text())
