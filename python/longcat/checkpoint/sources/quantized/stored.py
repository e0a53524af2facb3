"""Reads parts of the tensors of a safetensors folder, of any dtype, as arrays."""

from __future__ import annotations

import io
import os
import threading
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

import longcat._core as _core
from longcat._core import Error
from longcat.support.files import open_regular

# The type that holds an element's bits.
_BITS: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "I8": np.int8,
    "U8": np.uint8,
    "I32": np.int32,  # and U32, which the core reads as I32
    "I64": np.int64,
}
FLOATS = ("F32", "F16", "BF16")


class Files:
    """The safetensors files of a folder. Headers are checked when it is made."""

    def __init__(self, folder: Path):
        self._open: dict[int, io.FileIO] = {}
        self._lock = threading.Lock()
        checkpoint = _core.Checkpoint(str(folder))
        self.folder = folder
        self.names = [name for name, _ in checkpoint.shards()]
        self._tensors = checkpoint.tensors()

    def arrays(self) -> dict[str, Array]:
        """All tensors by name."""
        return {
            name: Array(self, name, dtype, shape, shard, begin) for name, dtype, shape, shard, begin, _ in self._tensors
        }

    def __del__(self) -> None:
        for file in self._open.values():
            file.close()

    def read(self, shard: int, begin: int, size: int) -> bytes:
        """Bytes [begin, begin + size) of a file. Several threads may call it."""
        with self._lock:
            if shard not in self._open:
                self._open[shard] = open_regular(self.folder / self.names[shard], "[convert]")
            file = self._open[shard]
        parts = []
        while size > 0:
            part = os.pread(file.fileno(), size, begin)
            if not part:
                raise Error(f"[convert] {self.folder / self.names[shard]} became shorter while it was read")
            parts.append(part)
            begin, size = begin + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True)
class Array:
    """A stored tensor, or one expert's part of a stack of them."""

    files: Files
    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    begin: int  # in its file [bytes]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self._item

    @property
    def _item(self) -> int:
        return np.dtype(_BITS[self.dtype]).itemsize

    def of_expert(self, index: int) -> Array:
        """Tensor `index` of a stack [experts, ...]."""
        size = prod(self.shape[1:]) * self._item
        return replace(self, shape=self.shape[1:], begin=self.begin + index * size)

    def rows(self, begin: int, end: int) -> np.ndarray:
        """The bits of rows [begin, end)."""
        row = prod(self.shape[1:]) * self._item
        data = self.files.read(self.shard, self.begin + begin * row, (end - begin) * row)
        return np.frombuffer(data, _BITS[self.dtype]).reshape(end - begin, *self.shape[1:])

    def columns(self, begin: int, end: int) -> np.ndarray:
        """The bits of columns [begin, end) of a matrix."""
        rows, width = self.shape
        size = (end - begin) * self._item
        if end - begin == width:
            return self.rows(0, rows)
        at = self.begin + begin * self._item
        parts = (self.files.read(self.shard, at + row * width * self._item, size) for row in range(rows))
        return np.frombuffer(b"".join(parts), _BITS[self.dtype]).reshape(rows, end - begin)

    def all(self) -> np.ndarray:
        """The bits of all elements."""
        data = self.files.read(self.shard, self.begin, self.num_bytes)
        return np.frombuffer(data, _BITS[self.dtype]).reshape(self.shape)

    def __str__(self) -> str:
        return f'"{self.name}" is {self.dtype} {list(self.shape)}'
