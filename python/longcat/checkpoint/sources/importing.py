"""Writes a checkpoint of ours from a source in another format, some rows at a time."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

import longcat._core as _core
from longcat._core import Error
from longcat.checkpoint.card import Provenance, source_name
from longcat.checkpoint.convert import Converted
from longcat.checkpoint.formats import checked_formats, component_of, packed_as, place, spellings, use_of
from longcat.checkpoint.partial import PartialFolder
from longcat.checkpoint.sources.source import SourceTensor, WeightSource
from longcat.checkpoint.writer import MAX_SHARD_BYTES
from longcat.support.json_types import JsonObject
from longcat.support.text import count, printable, some_of

_CHUNK_VALUES = 1 << 19  # that a thread decodes at a time: 2 MB as f32
_ROWS = 8  # of a group of the x8 formats, which no chunk divides
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass
class Added:
    """The error that rounding added, over one row in eight."""

    error: float = 0.0  # sum of squares
    norm: float = 0.0  # of the source's values
    tensors: int = 0

    @property
    def relative(self) -> float:
        """The relative RMS error; 0 where nothing was rounded."""
        return math.sqrt(self.error / self.norm) if self.norm else 0.0


@dataclass
class Imported(Converted):
    """The written files, the time they took, and what rounding added."""

    # (format of the source, format written), of the tensors that this run wrote
    added: dict[tuple[str, str], Added] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # of the source, and tensors that were left out


@dataclass
class _Tensor:
    """One tensor to write."""

    source: str  # its name there
    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    found: SourceTensor
    packed: str | None = None
    is_grid: bool = False  # packed as it is, without rounding

    @property
    def format(self) -> str:
        """The format it is written in."""
        return self.packed or self.dtype


@dataclass
class _Chunk:
    """Encoded rows."""

    data: np.ndarray
    error: float = 0.0
    norm: float = 0.0


def import_weights(
    source: WeightSource,
    out: str | os.PathLike[str],
    formats: Mapping[str, str] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Writes the checkpoint of a source. An interrupted run continues, as `convert_checkpoint`.

    Args:
        source: the reader of the other format.
        out: must not exist, or be empty.
        formats: component -> "keep", "bf16", "int8" or "int4", as `convert_checkpoint` takes. "keep", which is also
            for components that are not named, writes each tensor in the nearest format that keeps its error: floats
            and grids exactly, others in int8. A grid of at most the bits of the format stays a grid.
        max_shard_bytes: maximum tensor bytes per file.
        progress: called with (bytes done, total bytes) of the source.
    Returns:
        Sizes, time, and the error that rounding added.
    Raises:
        longcat.Error: the source is damaged or not complete, `out` is not empty, another process writes to it, or the
            disk is too small.
        ValueError: a component or format is unknown.
    """
    start = time.perf_counter()
    formats = checked_formats(formats or {})
    config = source.folder_files["config.json"].decode()
    try:
        expected = [*_core.expected_tensors(config), *_core.expected_mtp_tensors(config)]
        uses = _core.packable_tensors(config)
    except Error as error:
        raise Error(f"[convert] {source.path}: {error}") from None
    found, notes = _complete(source, expected)
    shards = place([_stored(name, tensor, uses, formats) for name, tensor in found.items()], max_shard_bytes)
    plan = {"source": source.identity, "formats": dict(formats), "max_shard_bytes": max_shard_bytes}
    total = sum(tensor.num_bytes for tensor in found.values())
    added: dict[tuple[str, str], Added] = {}
    with PartialFolder(Path(out), plan, shards) as partial:
        done = sum(tensor.found.num_bytes for file in partial.done for tensor in shards[file])

        def write(stream: BinaryIO, members: Sequence[_Tensor]) -> None:
            nonlocal done
            for tensor, chunk, is_last in _encoded(source, members):
                stream.write(chunk.data.data)
                sums = added.setdefault((tensor.found.format, tensor.format), Added())
                sums.error += chunk.error
                sums.norm += chunk.norm
                if is_last:
                    sums.tensors += 1
                    done += tensor.found.num_bytes
                    if progress:
                        progress(done, total)

        partial.write_shards(write)
        for name, content in source.folder_files.items():
            (partial.path / name).write_bytes(content)
        options = {"formats": dict(formats)}
        partial.finish(Provenance("convert", source_name(Path(source.path)), options, _sizes(source.identity), {}))
    seconds = time.perf_counter() - start
    return Imported(partial.num_bytes, total, len(shards), len(partial.done), seconds, added, [*source.notes, *notes])


def _sizes(identity: JsonObject) -> dict[str, int]:
    """The size of each file of a source, by its identity."""
    sizes: dict[str, int] = {}
    for name, entry in identity.items():
        sizes |= _sizes(entry) if isinstance(entry, dict) else {name: entry[0]}
    return sizes


# --- what is written -------------------------------------------------------------------------------------------------


def _complete(
    source: WeightSource, expected: Sequence[tuple[str, tuple[int, ...], bool]]
) -> tuple[dict[str, SourceTensor], list[str]]:
    """The tensors that config.json asks for, and notes of the others. The MTP layer may be missing."""
    tensors = dict(source.tensors())
    notes, taken, missing = [], {}, []
    for name, shape, _ in expected:
        found = next((spelling for spelling in spellings(name) if spelling in tensors), None)
        if found is None:
            missing.append(name)
            continue
        if tensors[found].shape != shape:
            raise Error(
                f'[convert] {source.path}: "{found}" is {list(tensors[found].shape)}; expected {list(shape)}, by the '
                "model's other sizes"
            )
        taken[found] = tensors.pop(found)
    if lost := [name for name in missing if not _is_mtp(name)]:
        raise Error(
            f"[convert] {source.path}: {count(len(lost), 'tensor')} of {len(expected)} missing: {some_of(lost)}; "
            "expected all: is every file of the model there?"
        )
    if missing and (partly := [name for name in taken if _is_mtp(name)]):
        taken = {name: tensor for name, tensor in taken.items() if not _is_mtp(name)}
        notes.append(f"the MTP layer is left out: it has {len(partly)} of {len(partly) + len(missing)} tensors")
    if tensors:
        notes.append(printable(f"{count(len(tensors), 'tensor')} not used: {some_of(sorted(tensors))}"))
    return {name: taken[name] for name in source.tensors() if name in taken}, notes


def _is_mtp(name: str) -> bool:
    return name.startswith("model.mtp.")


def _stored(name: str, tensor: SourceTensor, uses: Mapping[str, str], formats: Mapping[str, str]) -> _Tensor:
    packed, is_grid = _packed(name, tensor, uses, formats)
    if packed is None:
        dtype = tensor.dtype or ("F32" if formats[component_of(name)] == "keep" else "BF16")
        return _Tensor(name, name, dtype, tensor.shape, math.prod(tensor.shape) * _BYTES[dtype], tensor)
    shape = _core.packed_shape(packed, tensor.shape[0], tensor.shape[1])
    return _Tensor(name, f"{name}.{packed}", "U8", shape, math.prod(shape), tensor, packed, is_grid)


def _packed(
    name: str, tensor: SourceTensor, uses: Mapping[str, str], formats: Mapping[str, str]
) -> tuple[str | None, bool]:
    """The packed format of a tensor, and whether it keeps the grid. None: it is stored as floats."""
    use = use_of(uses, name)
    if use is None:
        return None, False
    wanted = packed_as(uses, name, formats)
    grid = _grid_format(tensor, use)
    if formats[component_of(name)] == "keep":
        if tensor.dtype:
            return None, False
        return (grid, True) if grid else ("int8_x8" if use == "matrix" else "int8_b32", False)
    if grid and tensor.grid and wanted and wanted.startswith(("int4", "int8")) and tensor.grid.bits <= int(wanted[3]):
        return grid, True
    return wanted, False


def _grid_format(tensor: SourceTensor, use: str) -> str | None:
    """The format that holds the grid of a tensor; None where there is none."""
    if tensor.grid is None:
        return None
    name = f"int{tensor.grid.bits}"
    if use == "matrix":
        return f"{name}_x8_f16" if tensor.grid.scale == "f16" else f"{name}_x8"
    return f"{name}_b32" if tensor.grid.scale == "f16" else None


# --- encoding --------------------------------------------------------------------------------------------------------


def _encoded(source: WeightSource, tensors: Sequence[_Tensor]) -> Iterator[tuple[_Tensor, _Chunk, bool]]:
    """Encodes tensors in threads. Yields in order: a tensor, some of its rows, whether these are the last ones."""
    threads = len(os.sched_getaffinity(0))
    waiting: deque[tuple[_Tensor, Future[_Chunk], bool]] = deque()
    with ThreadPoolExecutor(threads, "convert") as pool:
        try:
            for tensor in tensors:
                rows, columns = tensor.found.shape if len(tensor.found.shape) == 2 else (1, tensor.found.shape[0])
                step = max(_ROWS, _CHUNK_VALUES // columns // _ROWS * _ROWS)
                for begin in range(0, rows, step):
                    end = min(begin + step, rows)
                    waiting.append((tensor, pool.submit(_encode, source, tensor, begin, end), end == rows))
                    if len(waiting) > 8 * threads:
                        tensor_, chunk, is_last = waiting.popleft()
                        yield tensor_, chunk.result(), is_last
            while waiting:
                tensor_, chunk, is_last = waiting.popleft()
                yield tensor_, chunk.result(), is_last
        finally:
            pool.shutdown(cancel_futures=True)


def _encode(source: WeightSource, tensor: _Tensor, begin: int, end: int) -> _Chunk:
    if tensor.packed and tensor.is_grid:
        integers, scales = source.grid_rows(tensor.source, begin, end)
        exponent = 0x7C00 if tensor.found.grid and tensor.found.grid.scale == "f16" else 0x7F80
        _check_finite(source, tensor, begin, (scales & exponent) != exponent)
        return _Chunk(_core.pack_grid(integers, scales, tensor.packed))
    values = source.rows(tensor.source, begin, end)
    if tensor.packed:
        try:
            return _Chunk(*_core.pack_values(values, tensor.packed))
        except Error:
            _check_finite(source, tensor, begin, np.isfinite(values))
            raise
    if tensor.found.dtype is None:
        _check_finite(source, tensor, begin, np.isfinite(values))
    if tensor.dtype == "F32":
        return _Chunk(values)
    if tensor.dtype == "F16":
        return _Chunk(values.astype(np.float16))
    if tensor.found.dtype:
        return _Chunk((values.view(np.uint32) >> 16).astype(np.uint16))
    data = _rounded_bf16(values)
    sample = values[::_ROWS]
    difference = (data[::_ROWS].astype(np.uint32) << 16).view(np.float32) - sample
    return _Chunk(data, float(np.vdot(difference, difference)), float(np.vdot(sample, sample)))


def _rounded_bf16(values: np.ndarray) -> np.ndarray:
    """The bits of finite float32 values, rounded to the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _check_finite(source: WeightSource, tensor: _Tensor, begin: int, is_finite: np.ndarray) -> None:
    if not is_finite.all():
        row = begin + int(np.argmin(is_finite.all(axis=1)))
        raise Error(f'[convert] {source.path}: "{tensor.source}", row {row} is not finite; expected finite values')
