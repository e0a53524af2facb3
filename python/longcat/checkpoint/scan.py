"""One pass over the files of a checkpoint: every value looked at, every byte hashed, a thread a file."""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import longcat._core as _core

_CHUNK = 8 << 20  # bytes read at once by each thread
_MIN_HOLE = 64 << 10  # a block of zero bytes this long in a tensor is worth a word


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file [bytes]
    end: int


@dataclass
class FileResult:
    """What one file was found to hold."""

    sha256: str = ""  # when it was asked for
    not_finite: list[str] = field(default_factory=list)  # one line a tensor
    holes: list[str] = field(default_factory=list)


class _Stopped(Exception):
    """Another thread failed, or the user has had enough."""


def read_files(
    folder: Path,
    tensors: dict[str, list[FileTensor]],
    hashed: set[str],
    progress: Callable[[int, int], None] | None,
) -> dict[str, FileResult]:
    """Scans the tensors of each file and hashes the files of `hashed`: a thread a file, each file read once."""
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

    with open(path, "rb", buffering=0) as file:
        buffer = memoryview(bytearray(_CHUNK))

        def chunks(begin: int, end: int) -> Iterator[memoryview]:
            for at in range(begin, end, _CHUNK):
                chunk = buffer[: min(_CHUNK, end - at)]
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
            _scan_tensor(tensor, chunks(tensor.begin, tensor.end), path.name, result)
    if hashed:
        result.sha256 = digest.hexdigest()
    return result


def _scan_tensor(tensor: FileTensor, chunks: Iterable[memoryview], file_name: str, result: FileResult) -> None:
    not_finite = hole = ""
    at = 0  # [bytes]
    for chunk in chunks:
        index, is_nan, all_zero = _core.scan_tensor(chunk, tensor.dtype)
        if index >= 0 and not not_finite:
            element = index + at * math.prod(tensor.shape) // (tensor.end - tensor.begin)
            kind = "NaN" if is_nan else "an infinity"
            not_finite = f'"{tensor.name}" has {kind} at element {element} of {list(tensor.shape)}'
            result.not_finite.append(not_finite)
        if all_zero and len(chunk) >= _MIN_HOLE and not hole:
            hole = f'"{tensor.name}" from byte {tensor.begin + at} of {file_name}'
            result.holes.append(hole)
        at += len(chunk)
