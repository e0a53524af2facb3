"""One pass over the files of a checkpoint that checks every value and hashes every byte, with one thread per file."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import longcat._core as _core
from longcat.support.files import open_regular

_CHUNK = 8 << 20  # [bytes] per read of a thread
_MIN_HOLE = 64 << 10  # [bytes]; a block of zeros of this size in a tensor is a hole


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file [bytes]
    end: int
    width: int = 0  # number of columns of a packed matrix; 0: not packed

    @property
    def packed(self) -> str | None:
        """The packed format."""
        return self.name.rpartition(".")[2] if self.width else None


@dataclass(frozen=True)
class Hole:
    """Zero bytes in a tensor: all of it, or at least one block."""

    tensor: str
    whole: bool
    detail: str


@dataclass
class FileResult:
    """The findings in one file."""

    sha256: str = ""  # only when requested
    not_finite: list[str] = field(default_factory=list)  # one line per tensor
    holes: list[Hole] = field(default_factory=list)  # one per tensor


class _Stopped(Exception):
    """Another thread failed, or the user interrupted the scan."""


def read_files(
    folder: Path,
    tensors: dict[str, list[FileTensor]],
    hashed: set[str],
    progress: Callable[[int, int], None] | None,
) -> dict[str, FileResult]:
    """Scans the tensors of each file and hashes the files of `hashed`. One thread per file; each file is read once."""
    total = sum((folder / name).stat().st_size for name in tensors)
    stop = threading.Event()
    lock = threading.Lock()
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        if stop.is_set():
            raise _Stopped
        with lock:
            done += num_bytes
            if progress:
                progress(done, total)

    num_threads = max(1, min(len(tensors), _core.available_threads()))
    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        futures = {
            name: pool.submit(_read_file, folder / name, parts, name in hashed, advance)
            for name, parts in tensors.items()
        }
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            stop.set()
            raise


def _read_file(path: Path, tensors: list[FileTensor], hashed: bool, advance: Callable[[int], None]) -> FileResult:
    result = FileResult()
    digest = hashlib.sha256()
    data_begin = min((tensor.begin for tensor in tensors), default=path.stat().st_size)

    with open_regular(path, "[verify]") as file:
        widest = max((tensor.shape[1] for tensor in tensors if tensor.packed), default=1)
        buffer = memoryview(bytearray(max(_CHUNK, widest)))

        def chunks(begin: int, end: int, unit: int = 1) -> Iterator[memoryview]:
            size = max(1, _CHUNK // unit) * unit
            for at in range(begin, end, size):
                chunk = buffer[: min(size, end - at)]
                filled = 0
                while filled < len(chunk):
                    filled += (n := file.readinto(chunk[filled:]) or 0)
                    if n == 0:
                        raise OSError(errno.EIO, "became shorter while it was read", str(path))
                if hashed:
                    digest.update(chunk)
                yield chunk
                advance(len(chunk))

        for _ in chunks(0, data_begin):
            pass
        for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end)):
            unit = tensor.shape[1] if tensor.packed else 1
            _scan_tensor(tensor, chunks(tensor.begin, tensor.end, unit), path.name, result)
    if hashed:
        result.sha256 = digest.hexdigest()
    return result


def _scan_tensor(tensor: FileTensor, chunks: Iterable[memoryview], file_name: str, result: FileResult) -> None:
    not_finite = ""
    hole = -1
    only_zeros = True
    at = 0  # [bytes]
    for chunk in chunks:
        index, is_nan, all_zero = _core.scan_tensor(chunk, tensor.dtype)
        if tensor.packed and not not_finite and (unit := _core.scan_packed(chunk, tensor.packed, tensor.width)) >= 0:
            rows = 8 if "_x8" in tensor.packed else 1
            row = (unit + at // tensor.shape[1]) * rows
            not_finite = f'"{tensor.name}" has NaN or an infinity in {"rows" if rows > 1 else "row"} {row}'
            not_finite += f" to {row + rows - 1}" if rows > 1 else ""
            result.not_finite.append(not_finite)
        if index >= 0 and not not_finite:
            element = index + at * math.prod(tensor.shape) // (tensor.end - tensor.begin)
            kind = "NaN" if is_nan else "an infinity"
            not_finite = f'"{tensor.name}" has {kind} at element {element} of {list(tensor.shape)}'
            result.not_finite.append(not_finite)
        only_zeros = only_zeros and all_zero
        if hole < 0 and (found := 0 if all_zero and len(chunk) >= _MIN_HOLE else _zero_block(chunk)) >= 0:
            hole = at + found
        at += len(chunk)
    if at > 0 and only_zeros:
        result.holes.append(Hole(tensor.name, True, f'all of "{tensor.name}" in {file_name}'))
    elif hole >= 0:
        result.holes.append(Hole(tensor.name, False, f'"{tensor.name}" from byte {tensor.begin + hole} of {file_name}'))


def _zero_block(chunk: memoryview) -> int:
    """Offset of the first block of `_MIN_HOLE` zero bytes, or -1. Only blocks at multiples of that size are checked."""
    for at in range(0, len(chunk) - _MIN_HOLE + 1, _MIN_HOLE):
        if not chunk[at] and not np.frombuffer(chunk[at : at + _MIN_HOLE], np.uint8).any():
            return at
    return -1
