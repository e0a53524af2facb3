"""Random checkpoints of any scale in the official Hugging Face layout, for benchmarks and tests.

Names and shapes come from the native core (`expected_tensors`), so every checkpoint written here can be loaded. This
module adds the distribution of each tensor's values, and writes the files: as official ones, or packed as `longcat
convert` writes them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.card import Provenance, write_card
from longcat.checkpoint.formats import PRESETS as QUANT_PRESETS
from longcat.checkpoint.formats import component_of, packed_as, place
from longcat.checkpoint.random_values import PackedPool, TensorSpec, ValuePool
from longcat.checkpoint.writer import (
    MAX_SHARD_BYTES,
    HashedStream,
    check_new,
    check_room,
    header,
    place_of,
    split,
    write_index,
)
from longcat.support.files import read_json_object
from longcat.support.folder_lock import LOCK_FILE, FolderLock
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
PACKED = ("int8", "int4")  # the values of --quant
TABLES = ("fp8", "int8", "int4")  # the values of --tables

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


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """The result of write_checkpoint."""

    parameters: int
    num_bytes: int  # of all safetensors files
    disk_bytes: int  # that these files take on the disk: less than num_bytes with holes
    files: int  # safetensors files
    seconds: float


@dataclass
class _Stored:
    """One tensor in its file."""

    source: str  # its name in an official checkpoint
    spec: TensorSpec
    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    packed: str | None = None
    is_hole: bool = False  # its bytes are zeros that take no room on the disk


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
    quant: str | None = None,
    tables: str | None = None,
    sparse_tables: bool = False,
    seed: int = 0,
    mtp: bool = False,
    tokenizer: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Writes a random checkpoint: config.json, safetensors files and, when there are several, their index.

    The files are written to `folder`.partial, which is renamed to `folder` once the disk has all of them. An
    interrupted run, and one that fills the disk, leave no folder that looks complete. Memory use does not grow with the
    model (about 120 MB besides NumPy).

    Args:
        folder: must not exist, or be empty.
        config: config.json; `torch_dtype` is set to `dtype`.
        dtype: "bf16" or "f32"; the router, and the indexer's weights_proj, are always f32, as in official checkpoints.
        quant: "int8" or "int4": the files, tensors and formats that `longcat convert --quant` makes of the checkpoint,
            without the copy in `dtype`. A model card and hashes are written, too. None: the official layout.
        tables: the format of the N-gram tables in place of that of `quant`: "fp8", "int8" or "int4".
        sparse_tables: leave holes in the files in place of the rows of the N-gram tables. They read as zeros, and take
            no room on the disk.
        seed: the same seed, config and formats give the same bytes.
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
    if quant not in (None, *PACKED):
        raise ValueError(f'quant "{quant}"; expected {" or ".join(PACKED)}')
    if tables is not None and (quant is None or tables not in TABLES):
        raise ValueError(f'tables "{tables}"; expected {", ".join(TABLES)}, with quant')
    config = {**config, "torch_dtype": _TORCH_DTYPES[dtype]}
    specs = tensor_specs(config, mtp)
    formats = QUANT_PRESETS[quant] | ({"tables": tables} if tables else {}) if quant else None
    files = _plan(specs, config, dtype, formats, sparse_tables, max_shard_bytes)
    headers = {
        file: header((t.name, t.dtype, t.shape, t.num_bytes) for t in members) for file, members in files.items()
    }
    stored = [tensor for members in files.values() for tensor in members]
    total = sum(map(len, headers.values())) + sum(tensor.num_bytes for tensor in stored)
    holes = sum(tensor.num_bytes for tensor in stored if tensor.is_hole)
    copies = _tokenizer_files(tokenizer, config) if tokenizer is not None else []
    target, partial = place_of(Path(folder))
    try:
        lock = _lock_target(target, partial, total - holes, sparse_tables)
        written = partial
        try:
            (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            if "model.safetensors" not in files:
                names = {file: [t.name for t in members] for file, members in files.items()}
                write_index(partial, names, sum(tensor.num_bytes for tensor in stored))
            for source in copies:
                shutil.copyfile(source, partial / source.name)
            disk_bytes = _write_tensors(partial, files, headers, dtype, seed, total, progress)
            if quant:
                options = {"formats": formats, "sparse_tables": sparse_tables, "mtp": mtp}
                name = f"random values with seed {seed}"
                write_card(partial, Provenance("make-checkpoint", name, options, files={}, hashes={}))
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
    return Written(parameters, total, disk_bytes, len(files), time.perf_counter() - start)


def _plan(
    specs: Mapping[str, TensorSpec],
    config: Mapping[str, object],
    dtype: str,
    formats: Mapping[str, str] | None,
    sparse_tables: bool,
    max_shard_bytes: int,
) -> dict[str, list[_Stored]]:
    """file name -> its tensors."""
    uses = _core.packable_tensors(json.dumps(config)) if formats else {}
    stored = {}
    for name, spec in specs.items():
        packed = packed_as(uses, name, formats) if formats else None
        hole = sparse_tables and component_of(name) == "tables"
        if packed:
            rows, stride = _core.packed_shape(packed, *spec.shape)
            tensor = _Stored(name, spec, f"{name}.{packed}", "U8", (rows, stride), rows * stride, packed, hole)
        else:
            tag = "F32" if spec.kind == "router" else _TAGS[dtype]
            size = math.prod(spec.shape) * (4 if tag == "F32" else 2)
            tensor = _Stored(name, spec, name, tag, spec.shape, size, None, hole)
        stored[name] = tensor
    if formats:
        return place((stored[name] for name in sorted(stored)), max_shard_bytes)
    mtp = [name for name in specs if name.startswith("model.mtp.")]
    names = split({n: t.num_bytes for n, t in stored.items() if n not in mtp}, max_shard_bytes, more_files=bool(mtp))
    if mtp:
        names[AUXILIARY_FILE] = mtp
    return {file: [stored[name] for name in members] for file, members in names.items()}


def _lock_target(target: Path, partial: Path, total: int, sparse_tables: bool) -> FolderLock:
    """Creates the folder `partial` and locks it. total: bytes that the files take on the disk."""
    check_new("make-checkpoint", target)
    smaller = "--preset, --layers" if sparse_tables else "--preset, --layers, --quant, --sparse-tables"
    remedy = f"free some, name a folder on another disk, or make a smaller model ({smaller})"
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


def _write_tensors(
    folder: Path,
    files: Mapping[str, list[_Stored]],
    headers: Mapping[str, bytes],
    dtype: str,
    seed: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Writes the files, and waits until the disk has them. Returns the bytes that they take there."""
    values, packed = ValuePool(seed), PackedPool(seed)
    done = disk_bytes = 0
    for file_name, tensors in files.items():
        is_hashed = any(tensor.packed for tensor in tensors) and not any(tensor.is_hole for tensor in tensors)
        with open(folder / file_name, "xb") as file:
            stream = HashedStream(file) if is_hashed else file
            done += stream.write(headers[file_name])
            for tensor in tensors:
                if tensor.is_hole:
                    file.seek(tensor.num_bytes, os.SEEK_CUR)
                    done += tensor.num_bytes
                    continue
                if tensor.packed:
                    pieces = packed.chunks(tensor.source, tensor.spec, tensor.packed)
                else:
                    pieces = values.chunks(tensor.source, tensor.spec, "f32" if tensor.dtype == "F32" else dtype)
                for piece in pieces:
                    done += stream.write(piece.data)
                    if progress:
                        progress(done, total)
            file.truncate(file.tell())  # where it ends with a hole
            os.fsync(file.fileno())  # file systems may find that the disk is full no sooner
            disk_bytes += os.fstat(file.fileno()).st_blocks * 512
        if isinstance(stream, HashedStream):
            stream.store_hash(folder / file_name)
        if progress:
            progress(done, total)
    return disk_bytes
