"""Converts checkpoints to the formats of the CPU kernels: quantised, interleaved, mapped without unpacking.

A converted folder is a checkpoint, too, with the same config.json and tokenizer. A packed tensor is a U8 tensor whose
name ends with its format ("model.layers.0.mlps.0.up_proj.weight.int4_x8"). cpp/ops/packed.h describes the formats.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.calibration.gptq import error_propagation, round_int4
from longcat.checkpoint.calibration.moments import InputMoments, check_text
from longcat.checkpoint.card import Provenance, source_name
from longcat.checkpoint.formats import COMPONENTS, FORMATS, PRESETS, checked_formats, component_of, packed_as, place
from longcat.checkpoint.partial import PartialFolder, is_no_copy
from longcat.checkpoint.verify import known_hashes
from longcat.checkpoint.writer import MAX_SHARD_BYTES
from longcat.support.files import open_regular, read_text
from longcat.support.json_types import JsonObject

__all__ = ["COMPONENTS", "FORMATS", "PRESETS", "Converted", "convert_checkpoint"]

_ROWS = 1024  # of a matrix that are rounded at a time, a multiple of 8: 12 MB of f32 with 3072 columns


@dataclass
class Converted:
    """The written files and the time they took."""

    num_bytes: int  # of all safetensors files
    source_bytes: int
    files: int
    resumed_files: int  # complete from an earlier run
    seconds: float


@dataclass
class _Tensor:
    """One tensor to write, copied or packed."""

    source: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    packed: str | None = None
    width: int = 0  # columns of a matrix
    shard: int = 0  # of the source file; the tensor is its bytes [begin, end)
    begin: int = 0
    end: int = 0


def convert_checkpoint(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    formats: Mapping[str, str],
    *,
    calibration: Sequence[int] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> Converted:
    """Writes a checkpoint in packed formats, with a model card, provenance.json and SHA256SUMS.

    Files are written to `out`.partial, which is renamed to `out` at the end. An interrupted run continues when it is
    started again with the same arguments. A second run at the same time is refused.

    Args:
        folder: a checkpoint in the Hugging Face layout; bf16, f16, f32 or FP8 blocks.
        out: must not exist, or be empty.
        formats: component -> "keep", "bf16", "int8" or "int4"; see COMPONENTS. Matrices get one scale per 32 columns,
            tables one scale per row. "bf16" and "keep" leave tables unchanged. "fp8" is for embedding and tables.
        calibration: token ids of a text like those the model will read; default_token_ids() has one. The core's int4
            matrices are then rounded for their inputs on that text, which costs far less quality; see
            longcat.checkpoint.calibration.gptq.
        max_shard_bytes: maximum tensor bytes per file.
        progress: called with (bytes done, total bytes) of the source.
        log: called with a line before each slow step.
    Returns:
        Sizes and time.
    Raises:
        longcat.Error: the checkpoint is damaged or already converted, `out` is not empty, another process writes to
            it, or the disk is too small.
        ValueError: a component or format is unknown, a calibration token is not in the vocabulary, or no matrix uses
            the calibration.
    """
    start = time.perf_counter()
    formats = checked_formats(formats)
    source, target = Path(folder), Path(out)
    checkpoint = _core.Checkpoint(str(source))
    checkpoint.check_tensors()
    if calibration is not None:
        check_text(source, calibration)
        if formats["core"] != "int4":
            raise ValueError(
                f"calibration rounds the core's int4 matrices, and core is {formats['core']}: leave it out"
            )
    shards = place(_tensors(checkpoint, source, formats), max_shard_bytes)
    source_total = sum(tensor.end - tensor.begin for members in shards.values() for tensor in members)
    plan = _plan(checkpoint, source, formats, max_shard_bytes, calibration)
    with PartialFolder(target, plan, shards) as partial:
        left = [tensor for file, members in shards.items() if file not in partial.done for tensor in members]
        done = source_total - sum(tensor.end - tensor.begin for tensor in left)
        moments = None if calibration is None else InputMoments(source, calibration, _widths(left), log)

        def write(stream: BinaryIO, members: Sequence[_Tensor]) -> None:
            nonlocal done
            for tensor in members:
                _write(stream, tensor, checkpoint, source, moments)
                done += tensor.end - tensor.begin
                if progress:
                    progress(done, source_total)

        partial.write_shards(write)
        _copy_small_files(source, partial.path)
        partial.finish(_provenance(checkpoint, source, formats, calibration))
    seconds = time.perf_counter() - start
    return Converted(partial.num_bytes, source_total, len(shards), len(partial.done), seconds)


def _tensors(checkpoint: _core.Checkpoint, source: Path, formats: Mapping[str, str]) -> list[_Tensor]:
    uses = _core.packable_tensors(read_text(source / "config.json", "[config]"))
    stored = {name: (dtype, shape, shard, begin, end) for name, dtype, shape, shard, begin, end in checkpoint.tensors()}
    tensors = []
    for name, (dtype, shape, shard, begin, end) in stored.items():
        if name.rpartition(".")[2] in _core.PACKED_FORMATS:
            raise Error(f'[convert] {source}: "{name}" is packed already: convert the original checkpoint')
        if name.endswith("_scale_inv") and packed_as(uses, name.removesuffix("_scale_inv"), formats):
            continue
        tensor = _Tensor(name, name, dtype, shape, end - begin, None, 0, shard, begin, end)
        if packed := packed_as(uses, name, formats):
            rows, stride = _core.packed_shape(packed, shape[0], shape[1])
            tensor = _Tensor(
                name, f"{name}.{packed}", "U8", (rows, stride), rows * stride, packed, shape[1], shard, begin, end
            )
        tensors.append(tensor)
    return tensors


def _plan(
    checkpoint: _core.Checkpoint,
    source: Path,
    formats: Mapping[str, str],
    max_shard_bytes: int,
    calibration: Sequence[int] | None,
) -> JsonObject:
    """The plan that an unfinished run must have recorded for this run to continue it."""
    shards = {}
    for name, num_bytes in checkpoint.shards():
        shards[name] = [num_bytes, (source / name).stat().st_mtime_ns]
    text = None if calibration is None else _text_hash(calibration)
    return {"formats": dict(formats), "max_shard_bytes": max_shard_bytes, "shards": shards, "calibration": text}


def _provenance(
    checkpoint: _core.Checkpoint, source: Path, formats: Mapping[str, str], calibration: Sequence[int] | None
) -> Provenance:
    hashes = {name: digest for name, (digest, _) in known_hashes(source).items()}
    text = None if calibration is None else {"tokens": len(calibration), "sha256": _text_hash(calibration)}
    options = {"formats": dict(formats), "calibration": text}
    return Provenance("convert", source_name(source), options, dict(checkpoint.shards()), hashes)


def _text_hash(calibration: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(calibration)).encode()).hexdigest()


def _widths(tensors: Iterable[_Tensor]) -> dict[str, int]:
    """The input widths of the matrices that are rounded for the calibration text."""
    return {
        t.source: t.width
        for t in tensors
        if t.packed == "int4_x8" and component_of(t.source) == "core" and not t.source.startswith("model.mtp.")
    }


def _write(
    stream: BinaryIO, tensor: _Tensor, checkpoint: _core.Checkpoint, source: Path, moments: InputMoments | None
) -> None:
    if moments is not None and (inputs := moments.of(tensor.source)) is not None:
        _check_finite(source, f'what reaches "{tensor.source}"', inputs)
        propagation = error_propagation(inputs)
        matrix = _core.read_matrix(checkpoint, tensor.source)
        _check_finite(source, f'"{tensor.source}"', matrix)
        for begin in range(0, len(matrix), _ROWS):
            q, scales = round_int4(matrix[begin : begin + _ROWS], propagation)
            bf16_bits = (scales.view(np.uint32) >> 16).astype(np.uint16)
            stream.write(_core.pack_grid(q, bf16_bits, "int4_x8").data)
        return
    if tensor.packed:
        stream.write(_core.pack_tensor(checkpoint, tensor.source, tensor.packed).data)
        return
    path = source / checkpoint.shards()[tensor.shard][0]
    with open_regular(path, "[convert]") as file:  # not mapped: a read notices when the file is cut meanwhile
        file.seek(tensor.begin)
        left = tensor.end - tensor.begin
        while left > 0:
            part = file.read(min(left, 1 << 26))
            if not part:
                raise Error(f"[convert] {path} became shorter while it was read; expected {tensor.end} bytes or more")
            stream.write(part)
            left -= len(part)


def _check_finite(source: Path, what: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise Error(f"[convert] {source}: {what} is not finite (longcat verify lists such values)")


def _copy_small_files(source: Path, partial: Path) -> None:
    """Copies config.json, tokenizer, generation defaults and licence: all files except weights, index and hashes."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and not is_no_copy(path.name):
            shutil.copyfile(path, partial / path.name)
