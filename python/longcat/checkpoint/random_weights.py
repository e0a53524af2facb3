"""Random checkpoints of any scale in the official Hugging Face layout, for benchmarks and tests.

Names and shapes come from the native core (`expected_tensors`), so every checkpoint written here can be loaded. This
module adds the distribution of each tensor's values. They are computed from integers, so they are the same on every
machine and with every version of NumPy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.lock import LOCK_FILE, FolderLock
from longcat.checkpoint.writer import MAX_SHARD_BYTES, check_new, check_room, header, split, write_index
from longcat.support.files import read_json_object
from longcat.support.json_types import JsonObject

AUXILIARY_FILE = "model-auxiliary.safetensors"  # the file of official checkpoints for MTP tensors
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_TORCH_DTYPES = {"bf16": "bfloat16", "f32": "float32"}
_TAGS = {"bf16": "BF16", "f32": "F32"}

# --- configurations -------------------------------------------------------------------------------

# LongCat-Flash-Lite itself: 68.5 B parameters, 137 GB in bf16.
LITE_CONFIG: JsonObject = read_json_object(Path(__file__).with_name("configs") / "lite.json", "[config]")

# LongCat-Flash-Lite-Sparse: 69.1 B parameters with the MTP layer, 138 GB in bf16.
LITE_SPARSE_CONFIG: JsonObject = read_json_object(Path(__file__).with_name("configs") / "lite_sparse.json", "[config]")

# Real widths with fewer layers and experts: 3.65 B parameters, 7.3 GB in bf16, of which the N-gram tables take 0.8 GB.
# With a ratio of 1 each table has about 131073 rows: a lookup still reads one page, but the tables are small.
MEDIUM_CONFIG = LITE_CONFIG | {
    "num_layers": 6,
    "n_routed_experts": 24,
    "zero_expert_num": 12,
    "ngram_vocab_size_ratio": 1,
}

# Real head sizes, a quarter of the width: 225 M parameters, 450 MB in bf16.
SMALL_CONFIG = LITE_CONFIG | {
    "vocab_size": 32768,
    "hidden_size": 768,
    "num_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 384,
    "kv_lora_rank": 256,
    "ffn_hidden_size": 1536,
    "expert_ffn_hidden_size": 256,
    "n_routed_experts": 32,
    "zero_expert_num": 16,
    "ngram_vocab_size_ratio": 2,
}

# Every mechanism of LongCat-Flash-Lite at toy sizes. The context is longer than YaRN's original one.
TINY_CONFIG = LITE_CONFIG | {
    "vocab_size": 128,
    "hidden_size": 96,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "ffn_hidden_size": 64,
    "expert_ffn_hidden_size": 32,
    "n_routed_experts": 6,
    "zero_expert_num": 3,
    "moe_topk": 3,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    },
    "max_position_embeddings": 512,
    "ngram_vocab_size_ratio": 3,
}

# The same sizes with sparse attention: from position 32 on, a token attends to 32 positions.
_TINY_SIZES = (
    "vocab_size hidden_size num_layers num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim "
    "v_head_dim ffn_hidden_size expert_ffn_hidden_size n_routed_experts zero_expert_num moe_topk rope_theta "
    "max_position_embeddings"
).split()
TINY_SPARSE_CONFIG = (
    LITE_SPARSE_CONFIG
    | {name: TINY_CONFIG[name] for name in _TINY_SIZES}
    | {
        "rope_scaling": TINY_CONFIG["rope_scaling"] | {"rope_type": "deepseek_yarn"},
        "oe_vocab_size_ratio": 3,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 32,
        "index_init_tokens": 2,
        "index_local_tokens": 12,
    }
)

PRESETS: dict[str, JsonObject] = {
    "tiny": TINY_CONFIG,
    "small": SMALL_CONFIG,
    "medium": MEDIUM_CONFIG,
    "lite": LITE_CONFIG,
    "tiny-sparse": TINY_SPARSE_CONFIG,
    "lite-sparse": LITE_SPARSE_CONFIG,
}


# --- names, shapes, spreads -----------------------------------------------------------------------


@dataclass(frozen=True)
class TensorSpec:
    """Shape and distribution of one tensor. `kind`: "linear" (FP8 in FP8 files), "plain" or "router" (always F32)."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    kind: str = "plain"
    std_tail: tuple[int, float] | None = None  # (n, std): the last n rows have this standard deviation


def tensor_specs(config: Mapping[str, object], mtp: bool = False) -> dict[str, TensorSpec]:
    """All tensors of a checkpoint with `config`, in file order.

    Args:
        config: config.json.
        mtp: include the multi-token-prediction layer.
    Returns:
        name -> TensorSpec. The distributions keep activations O(1), make the router pick every expert about equally
        often, and let every mechanism affect the logits.
    Raises:
        longcat.Error: the config is not of this architecture, or its sizes do not fit together.
    """
    tensors = list(_core.expected_tensors(json.dumps(config)))
    num_tables = sum(".embedders." in name or ".oe_embed_tokens" in name for name, _, _ in tensors)
    if mtp:
        tensors += _core.expected_mtp_tensors(json.dumps(config))
    return {name: _spec(name, shape, is_linear, config, num_tables) for name, shape, is_linear in tensors}


def _spec(name: str, shape: tuple[int, ...], is_linear: bool, config: Mapping[str, Any], num_tables: int) -> TensorSpec:
    hidden, in_dim, vectors = config["hidden_size"], shape[-1], 1 + num_tables
    path = name.removesuffix(".weight").split(".")
    module = path[-2] if path[-1].isdigit() or path[-1] == "m" else path[-1]  # input_layernorm.0, enorm.m
    module = module.rstrip("0123456789")  # oe_embed_tokens0
    if module.endswith("norm"):
        return TensorSpec(shape, 0.2, mean=1.0)
    kind, std, tail = "linear" if is_linear else "plain", 1 / math.sqrt(in_dim), None
    match module:
        case "embed_tokens":
            # The embedding is a mean of 1 + tables vectors. The word has standard deviation 0.4, all tables together
            # 0.8.
            std = 0.9 if "mtp" in path or not num_tables else 0.4 * vectors
        case "embedders" | "oe_embed_tokens":
            std = 1.0
        case "post_projs" | "oe_embed_proj":
            std = 0.8 * vectors / math.sqrt(num_tables * in_dim)
        case "q_a_proj" | "kv_a_proj_with_mqa":
            # The low-rank activations are small (0.05), so that the epsilon of their norms affects the logits. q_b and
            # kv_b undo the sqrt(hidden / rank) scales, which keeps scores and values O(1).
            std = 0.05 / math.sqrt(hidden)
            if module == "kv_a_proj_with_mqa":
                tail = (config["qk_rope_head_dim"], 1 / math.sqrt(hidden))
        case "q_b_proj" | "kv_b_proj":
            std = math.sqrt(in_dim / hidden) / math.sqrt(in_dim)
        case "gate_proj":
            std = 1.5 / math.sqrt(in_dim)
        case "lm_head":
            std = 1.5 / math.sqrt(hidden)
        case "weights_proj":  # of the indexer; f32 as published
            kind = "router"
        case "classifier":  # router logits with deviation 1.5: no expert is picked always or never
            kind, std = "router", 1.5 / math.sqrt(hidden)
        case "e_score_correction_bias":  # a fraction of the mean score: influences the picks without deciding them
            kind, std = "router", 0.3 / in_dim
    return TensorSpec(shape, std, kind=kind, std_tail=tail)


# --- random numbers -------------------------------------------------------------------------------


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of the stream `name` under `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


def random_bits(seed: int, name: str, count: int, start: int = 0) -> np.ndarray:
    """SplitMix64 in counter mode: numbers `start`.. of the stream `name` under `seed`.

    Args:
        seed: any integer.
        name: stream label, e.g. a tensor name.
        count: number of values.
        start: number of values to skip.
    Returns:
        [count] uint64.
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = np.uint64(stream_key(seed, name)) + np.uint64(0x9E3779B97F4A7C15) * counter
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class ValuePool:
    """A ring of random 16-bit integers, from which every tensor is read and scaled to its distribution.

    Element i of a tensor is `std * sqrt(12) / 2^16 * ring[(start + i) mod PERIOD] + mean`: uniform, computed in f32.
    (seed, tensor name) give the start, and bf16 keeps the upper half of the f32. A value thus costs a multiplication
    instead of a random number. PERIOD is prime, so the rows of a matrix start at different places of the ring. No two
    rows are equal while there are fewer than PERIOD rows.
    """

    PERIOD = 2**24 - 3
    CHUNK = 1 << 18  # values per call: a few such buffers fit in the cache

    def __init__(self, seed: int):
        self._seed = seed
        # the start is repeated at the end, so that slices never wrap
        self._ring = np.empty(self.PERIOD + self.CHUNK, np.int16)
        words = self._ring[: 2**24 - 4].view(np.uint64)
        for begin in range(0, len(words), self.CHUNK):
            end = min(begin + self.CHUNK, len(words))
            words[begin:end] = random_bits(seed, "ring", end - begin, begin)
        self._ring[2**24 - 4 : self.PERIOD] = random_bits(seed, "ring end", 1).view(np.int16)[0]
        self._ring[self.PERIOD :] = self._ring[: self.CHUNK]
        self._f32 = np.empty(self.CHUNK, np.float32)
        self._bf16 = np.empty(self.CHUNK, np.uint16)

    def chunks(self, name: str, spec: TensorSpec, dtype: str) -> Iterator[np.ndarray]:
        """The tensor in row-major pieces, float32 or bf16 bits (uint16). The next piece overwrites the last."""
        start = stream_key(self._seed, name) % self.PERIOD
        row = math.prod(spec.shape[1:])
        tail_rows, tail_std = spec.std_tail or (0, 0.0)
        done = 0
        for count, std in [((spec.shape[0] - tail_rows) * row, spec.std), (tail_rows * row, tail_std)]:
            scale = np.float32(std * math.sqrt(12) / 2**16)
            end = done + count
            while done < end:
                n = min(self.CHUNK, end - done)
                at = (start + done) % self.PERIOD
                values = np.multiply(self._ring[at : at + n], scale, out=self._f32[:n], dtype=np.float32)
                if spec.mean:
                    values += np.float32(spec.mean)
                if dtype == "bf16":
                    halves = self._bf16[:n]
                    halves[:] = values.view("<u2")[1::2]
                    yield halves
                else:
                    yield values
                done += n


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """The result of write_checkpoint."""

    parameters: int
    num_bytes: int  # of all safetensors files
    files: int  # safetensors files
    seconds: float


def preset_config(preset: str, fields: Mapping[str, object] | None = None) -> JsonObject:
    """The configuration of a preset, with `fields` overriding its own. A null removes an optional field.

    Raises:
        ValueError: the preset is unknown.
        TypeError: a field does not belong to config.json; the message names the nearest one.
    """
    from longcat.support.names import unknown_name

    if preset not in PRESETS:
        raise ValueError(f'preset "{preset}"; expected {", ".join(PRESETS)}')
    config = dict(PRESETS[preset])
    for name, value in (fields or {}).items():
        if name not in config and name != "model_type":
            raise unknown_name("config.json of a preset", name, config)
        config[name] = value
    if (
        "num_attention_heads" in (fields or {})
        and "num_key_value_heads" in config
        and "num_key_value_heads" not in (fields or {})
    ):
        config["num_key_value_heads"] = config["num_attention_heads"]
    return {name: value for name, value in config.items() if value is not None or name == "rope_scaling"}


def write_checkpoint(
    folder: str | os.PathLike[str],
    config: Mapping[str, object],
    *,
    dtype: str = "bf16",
    seed: int = 0,
    mtp: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes a random checkpoint: config.json, safetensors files and, when there are several, their index.

    The files are written to `folder`.partial, which is renamed to `folder` at the end, so that an interrupted run
    leaves no folder that looks complete. Memory use does not grow with the model (about 60 MB besides NumPy).

    Args:
        folder: must not exist, or be empty.
        config: config.json; `torch_dtype` is set to `dtype`.
        dtype: "bf16" or "f32"; the router, and the indexer's weights_proj, are always f32, as in official checkpoints.
        seed: the same seed, config and dtype give the same bytes.
        mtp: include the multi-token-prediction layer, in model-auxiliary.safetensors.
        tokenizer: a folder whose tokenizer files are copied.
        max_shard_bytes: maximum tensor bytes per file.
        progress: called with (bytes done, total bytes) while writing.
    Returns:
        Sizes and time.
    Raises:
        longcat.Error: the folder is not empty, the disk is too small, or the config is invalid.
        ValueError: an argument is wrong.
    """
    start = time.perf_counter()
    if dtype not in _TAGS:
        raise ValueError(f'dtype "{dtype}"; expected {" or ".join(_TAGS)}')
    config = {**config, "torch_dtype": _TORCH_DTYPES[dtype]}
    specs = tensor_specs(config, mtp)
    files = _plan(specs, dtype, max_shard_bytes)
    headers = {file: _header(names, specs, dtype) for file, names in files.items()}
    file_bytes = {f: len(headers[f]) + sum(_size(specs[n], dtype) for n in names) for f, names in files.items()}
    total = sum(file_bytes.values())
    copies = _tokenizer_files(tokenizer, config) if tokenizer is not None else []
    target = Path(folder)
    partial = target.with_name(target.name + ".partial")
    try:
        lock = _lock_target(target, partial, total)
        written = partial
        try:
            _write_small_files(partial, config, specs, files, dtype)
            for source in copies:
                shutil.copyfile(source, partial / source.name)
            _write_tensors(partial, specs, files, headers, dtype, seed, total, progress)
            partial.rename(target)
            written = target
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            lock.release(written)
    except OSError as error:
        raise Error(f"[make-checkpoint] {error.filename or target}: {error.strerror or error}") from None
    parameters = sum(math.prod(spec.shape) for spec in specs.values())
    return Written(parameters, total, len(files), time.perf_counter() - start)


def _tag(spec: TensorSpec, dtype: str) -> str:
    return "F32" if spec.kind == "router" else _TAGS[dtype]


def _size(spec: TensorSpec, dtype: str) -> int:
    return math.prod(spec.shape) * (4 if _tag(spec, dtype) == "F32" else 2)


def _plan(specs: Mapping[str, TensorSpec], dtype: str, max_shard_bytes: int) -> dict[str, list[str]]:
    """file name -> tensor names."""
    mtp = [name for name in specs if name.startswith("model.mtp.")]
    sizes = {name: _size(spec, dtype) for name, spec in specs.items() if name not in mtp}
    files = split(sizes, max_shard_bytes, more_files=bool(mtp))
    return files | ({AUXILIARY_FILE: mtp} if mtp else {})


def _header(names: list[str], specs: Mapping[str, TensorSpec], dtype: str) -> bytes:
    return header((name, _tag(specs[name], dtype), specs[name].shape, _size(specs[name], dtype)) for name in names)


def _lock_target(target: Path, partial: Path, total: int) -> FolderLock:
    """Creates the folder `partial` and locks it."""
    check_new("make-checkpoint", target)
    remedy = "free some, name a folder on another disk, or make a smaller model (--preset, --layers)"
    check_room("make-checkpoint", target, total, remedy)
    lock = FolderLock("make-checkpoint", partial)
    try:
        check_new("make-checkpoint", target)  # again, because another run may have ended meanwhile
        if any(path.name != LOCK_FILE for path in partial.iterdir()):
            raise Error(f"[make-checkpoint] {partial} belongs to an interrupted run. Remove it")
        return lock
    except BaseException:
        lock.release(partial)
        if lock.created:
            partial.rmdir()
        raise


def _tokenizer_files(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> list[Path]:
    from longcat.request.tokenizer import Tokenizer

    vocab_size = Tokenizer(folder).vocab_size
    if vocab_size > config["vocab_size"]:
        raise ValueError(
            f"the tokenizer of {os.fspath(folder)} has {vocab_size} ids, vocab_size is {config['vocab_size']}: "
            f"add --set vocab_size={vocab_size}"
        )
    return [path for name in TOKENIZER_FILES if (path := Path(folder) / name).is_file()]


def _write_small_files(
    folder: Path,
    config: Mapping[str, object],
    specs: Mapping[str, TensorSpec],
    files: Mapping[str, list[str]],
    dtype: str,
) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if "model.safetensors" not in files:
        write_index(folder, files, sum(_size(spec, dtype) for spec in specs.values()))


def _write_tensors(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    files: Mapping[str, list[str]],
    headers: Mapping[str, bytes],
    dtype: str,
    seed: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    pool = ValuePool(seed)
    done = 0
    for file_name, names in files.items():
        with open(folder / file_name, "xb") as file:
            done += file.write(headers[file_name])
            for name in names:
                spec = specs[name]
                for values in pool.chunks(name, spec, "f32" if spec.kind == "router" else dtype):
                    done += file.write(values.data)
                    if progress:
                        progress(done, total)
