"""The header of a GGUF file: metadata and the place of each tensor, checked against the size of the file."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NoReturn

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.gguf.blocks import BLOCKS, type_name
from longcat.support.files import open_regular
from longcat.support.text import bytes_text, printable

Value = bool | int | float | str | list[str] | np.ndarray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 256 << 20  # of a real file: 6 MB, most of it the vocabulary
_MAX_NAME_BYTES = 1 << 16  # of a key or a tensor's name
_MAX_DIMS = 4
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_READ_BYTES = 1 << 20
_MIN_PAIR_BYTES = 8 + 4 + 1  # a key's length, a type, a value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # a name's length, a dimension, a type, an offset

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class TensorInfo:
    """The place of a tensor."""

    name: str
    shape: tuple[int, ...]  # slowest dimension first: the file has them in the other order
    type: int  # a key of blocks.BLOCKS
    file: int  # index of the file among the parts
    begin: int  # its bytes [begin, end) of the file
    end: int

    @property
    def row_bytes(self) -> int:
        """Size of the values of the last dimension [bytes]."""
        return BLOCKS[self.type].bytes_of(self.shape[-1])


class Part:
    """One file: its metadata and tensors. It is opened for each read, and must not change.

    Raises:
        longcat.Error: the file cannot be read, or a field of its header is impossible.
    """

    def __init__(self, path: Path, index: int = 0):
        self.path = path
        with open_regular(path, "[gguf]") as file:
            self.size, self.mtime_ns = _state(file)
        cursor = _Cursor(self)
        num_tensors, num_pairs = _read_counts(cursor)
        self.metadata = _read_metadata(cursor, num_pairs)
        self.tensors = _read_tensors(cursor, num_tensors, _alignment(self), index)

    def read(self, begin: int, num_bytes: int) -> np.ndarray:
        """Bytes [begin, begin + num_bytes) as uint8."""
        out = np.empty(num_bytes, np.uint8)
        view, done = memoryview(out.data), 0
        with open_regular(self.path, "[gguf]") as file:
            if _state(file) != (self.size, self.mtime_ns):
                self.fail("was changed while it was read; expected it to stay as it is")
            file.seek(begin)
            while done < num_bytes:
                try:
                    count = file.readinto(view[done:])
                except OSError as error:
                    raise Error(f"[gguf] {self.path} cannot be read: {error.strerror or error}") from None
                if not count:
                    self.fail(f"became shorter while it was read; expected {begin + num_bytes} bytes or more")
                done += count
        return out

    def fail(self, problem: str) -> NoReturn:
        """Raises the error of one line."""
        raise Error(f"[gguf] {self.path} {problem}")


def _state(file: FileIO) -> tuple[int, int]:
    """Size and time of change."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def open_parts(path: str | os.PathLike[str]) -> list[Part]:
    """Opens a GGUF file, and the other files of its model where it is one of several.

    Raises:
        longcat.Error: a file is missing or damaged, or the files do not belong together.
    """
    given = Part(Path(path))
    count = integer(given, "split.count", 1, 99_999, 1)
    if count == 1:
        return [given]
    match = _SPLIT_NAME.fullmatch(given.path.name)
    if not match or int(match[3]) != count or not 1 <= int(match[2]) <= count:
        given.fail(f"is one of {count} files by its split.count; expected a name like NAME-00001-of-{count:05d}.gguf")
    paths = [given.path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    if missing := [path for path in paths if not path.exists()]:
        raise Error(f"[gguf] {missing[0]} is missing, 1 of {len(missing)}; expected all {count} files")
    parts = [Part(path, index) for index, path in enumerate(paths)]
    for index, part in enumerate(parts):
        for key, expected in (("split.count", count), ("split.no", index)):
            if (found := integer(part, key, 0, 1 << 16)) != expected:
                part.fail(f"has {key} {found}; expected {expected}: the files are not of one model")
    _check_together(parts)
    return parts


def _check_together(parts: list[Part]) -> None:
    names: set[str] = set()
    for part in parts:
        if twice := names & {tensor.name for tensor in part.tensors}:
            part.fail(f"has tensor {quoted(min(twice))}, which another of the files has, too; expected it once")
        names |= {tensor.name for tensor in part.tensors}
    expected = integer(parts[0], "split.tensors.count", 0, 1 << 31, len(names))
    if len(names) != expected:
        parts[0].fail(f"has split.tensors.count {expected}; the {len(parts)} files have {len(names)} tensors")


# --- metadata --------------------------------------------------------------------------------------------------------


def integer(part: Part, key: str, low: int, high: int, default: int | None = None) -> int:
    """The integer of a key.

    Args:
        part: the file with the metadata.
        key: in full.
        low, high: the smallest and the largest value that is possible.
        default: returned where the key is missing; None: the key must be there.
    Raises:
        longcat.Error: the value is missing, no integer, or outside [low, high].
    """
    if default is not None and key not in part.metadata:
        return default
    value = _value(part, key, None)
    if isinstance(value, bool) or not isinstance(value, int):
        part.fail(f"has {key} {shown(value)}; expected an integer")
    if not low <= value <= high:
        part.fail(f"has {key} {value}; expected {low} to {high}")
    return value


def number(part: Part, key: str, default: float | None = None) -> float:
    """The finite number of a key, as `integer`. A float32 becomes the shortest decimal that rounds to it."""
    value = _value(part, key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        part.fail(f"has {key} {shown(value)}; expected a number")
    return value


def text(part: Part, key: str, default: str | None = None) -> str:
    """The string of a key, as `integer`."""
    value = _value(part, key, default)
    if not isinstance(value, str):
        part.fail(f"has {key} {shown(value)}; expected a string")
    return value


def flag(part: Part, key: str, default: bool) -> bool:
    """The truth value of a key, as `integer`."""
    value = _value(part, key, default)
    if not isinstance(value, bool):
        part.fail(f"has {key} {shown(value)}; expected true or false")
    return value


def strings(part: Part, key: str) -> list[str]:
    """The strings of a key; [] where the key is missing."""
    value = part.metadata.get(key, [])
    if not isinstance(value, list):
        part.fail(f"has {key} {shown(value)}; expected an array of strings")
    return value


def integers(part: Part, key: str) -> list[int]:
    """The integers of a key; [] where the key is missing."""
    value = part.metadata.get(key, [])
    if isinstance(value, np.ndarray) and value.dtype.kind in "ui":
        return [int(element) for element in value]
    if isinstance(value, list) and not value:
        return []
    part.fail(f"has {key} {shown(value)}; expected an array of integers")


def _value(part: Part, key: str, default: Value | None) -> Value:
    value = part.metadata.get(key, default)
    if value is None:
        part.fail(f"has no {key}; expected it in the metadata")
    return value


def shown(value: Value) -> str:
    """A value for a message."""
    if isinstance(value, (list, np.ndarray)):
        return f"of {len(value)} elements"
    return quoted(value) if isinstance(value, str) else str(value).lower()


def quoted(name: str) -> str:
    """A name from a file for a message."""
    return f'"{printable(name, 60)}"'


# --- parsing ---------------------------------------------------------------------------------------------------------


class _Cursor:
    """Reads the header from its start. Each read is checked against the rest of the file first."""

    def __init__(self, part: Part):
        self.part = part
        self.position = 0
        self._limit = min(part.size, _MAX_HEADER_BYTES)
        self._data = bytearray()

    def room(self) -> int:
        """Bytes that the header may still have."""
        return self._limit - self.position

    def take(self, num_bytes: int, field: str) -> bytes:
        """The next bytes, of which `field` is the description."""
        if num_bytes > self.room():
            self.fail(
                f"{field} of {bytes_text(num_bytes)} at byte {self.position}",
                f"at most {bytes_text(self.room())} there"
                + (" (a header has at most 268 MB)" if self._limit < self.part.size else ", where the file ends"),
            )
        end = self.position + num_bytes
        if end > len(self._data):
            wanted = min(max(end - len(self._data), _READ_BYTES), self.part.size - len(self._data))
            self._data += self.part.read(len(self._data), wanted).tobytes()
        taken = bytes(self._data[self.position : end])
        self.position = end
        return taken

    def number(self, code: str, field: str) -> int:
        """The next integer, by its code of `struct`."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code), field))[0])

    def string(self, field: str, max_bytes: int = _MAX_HEADER_BYTES) -> str:
        """The next string: a length of 8 bytes, then UTF-8."""
        length = self.number("Q", f"the length of {field}")
        if length > max_bytes:
            self.fail(f"{field} of {length} bytes at byte {self.position}", f"at most {max_bytes}")
        try:
            return self.take(length, field).decode()
        except UnicodeDecodeError:
            self.fail(f"{field} that is not UTF-8 at byte {self.position - length}", "UTF-8")

    def fail(self, found: str, expected: str) -> NoReturn:
        """Raises the error of one line."""
        self.part.fail(f"has {found}; expected {expected}")


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.take(4, "the magic number")
    if magic != _MAGIC:
        cursor.part.fail(f"begins with {magic!r}; expected {_MAGIC!r}, the beginning of a GGUF file")
    version = cursor.number("I", "the version")
    if version not in _VERSIONS:
        big_endian = version & 0xFFFF == 0 and version >> 24 in _VERSIONS
        cursor.fail(
            "a big-endian header" if big_endian else f"version {version}", "version 2 or 3 in little-endian order"
        )
    num_tensors = cursor.number("Q", "the number of tensors")
    num_pairs = cursor.number("Q", "the number of metadata")
    least = num_tensors * _MIN_TENSOR_BYTES + num_pairs * _MIN_PAIR_BYTES
    if least > cursor.room():
        cursor.fail(
            f"{num_tensors} tensors and {num_pairs} metadata by its header", f"as many as fit in {cursor.room()} bytes"
        )
    return num_tensors, num_pairs


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for index in range(count):
        key = cursor.string(f"the name of metadata {index}", _MAX_NAME_BYTES)
        if key in metadata:
            cursor.fail(f"metadata {quoted(key)} twice", "each once")
        metadata[key] = _read_value(cursor, quoted(key), cursor.number("I", f"the type of {quoted(key)}"))
    return metadata


def _read_value(cursor: _Cursor, field: str, code: int) -> Value:
    if code == _STRING:
        return cursor.string(field)
    if code == _ARRAY:
        return _read_array(cursor, field)
    if code == _BOOL:
        return bool(_bools(cursor, cursor.take(1, field), field)[0])
    value = _numbers(cursor, field, code, 1)[0]
    if code == 6:
        return float(str(value))  # 1e-05 as float32 is 9.99999974e-06
    return float(value) if code == 12 else int(value)


def _read_array(cursor: _Cursor, field: str) -> Value:
    code = cursor.number("I", f"the type of the elements of {field}")
    count = cursor.number("Q", f"the number of elements of {field}")
    if code == _STRING:
        if count * 8 > cursor.room():
            cursor.fail(f"{field} with {count} strings", f"as many as fit in {cursor.room()} bytes")
        return [cursor.string(field) for _ in range(count)]
    if code == _BOOL:
        return _bools(cursor, cursor.take(count, field), field)
    return _numbers(cursor, field, code, count)


def _bools(cursor: _Cursor, data: bytes, field: str) -> np.ndarray:
    values = np.frombuffer(data, np.uint8).copy()
    if (values > 1).any():
        cursor.fail(f"{field} with a truth value of {values.max()}", "0 or 1")
    return values


def _numbers(cursor: _Cursor, field: str, code: int, count: int) -> np.ndarray:
    if code not in _NUMBERS:
        cursor.fail(
            f"{field} of type {code}{' (an array in an array)' if code == _ARRAY else ''}", "a type from 0 to 12"
        )
    dtype = np.dtype(_NUMBERS[code])
    return np.frombuffer(cursor.take(count * dtype.itemsize, field), dtype).copy()


def _alignment(part: Part) -> int:
    alignment = integer(part, "general.alignment", 1, _MAX_ALIGNMENT, _DEFAULT_ALIGNMENT)
    if alignment & (alignment - 1):
        part.fail(f"has general.alignment {alignment}; expected a power of two")
    return alignment


def _read_tensors(cursor: _Cursor, count: int, alignment: int, file: int) -> list[TensorInfo]:
    infos, names = [], set()
    for index in range(count):
        name = cursor.string(f"the name of tensor {index}", _MAX_NAME_BYTES)
        what = f"tensor {quoted(name)}"
        if name in names:
            cursor.fail(f"{what} twice", "each once")
        names.add(name)
        num_dims = cursor.number("I", f"the number of dimensions of {what}")
        if not 1 <= num_dims <= _MAX_DIMS:
            cursor.fail(f"{what} of {num_dims} dimensions", f"1 to {_MAX_DIMS}")
        dims = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims, f"the shape of {what}"))
        code = cursor.number("I", f"the type of {what}")
        if code not in BLOCKS:
            known = ", ".join(block.name for block in BLOCKS.values())
            cursor.fail(f"{what} of type {type_name(code)}", f"one of {known}")
        block = BLOCKS[code]
        if min(dims) < 1 or dims[0] % block.size:
            cursor.fail(
                f"{what} of shape {list(dims)} in {block.name}", f"rows of whole blocks of {block.size}, none of 0"
            )
        begin = cursor.number("Q", f"the offset of {what}")
        size = block.bytes_of(dims[0]) * math.prod(dims[1:])
        infos.append(TensorInfo(name, tuple(reversed(dims)), code, file, begin, begin + size))
    data = (cursor.position + alignment - 1) // alignment * alignment
    _check_places(cursor, infos, alignment, data)
    return [TensorInfo(i.name, i.shape, i.type, file, data + i.begin, data + i.end) for i in infos]


def _check_places(cursor: _Cursor, infos: Iterable[TensorInfo], alignment: int, data: int) -> None:
    """Checks that the tensors lie in the file, aligned, and that none overlaps another."""
    size, before = cursor.part.size, None
    for info in sorted(infos, key=lambda info: (info.begin, info.end)):
        what = f"tensor {quoted(info.name)}"
        if info.begin % alignment:
            cursor.fail(f"{what} at offset {info.begin}", f"a multiple of {alignment}")
        if data + info.end > size:
            cursor.fail(
                f"{what} in bytes {data + info.begin} to {data + info.end}", f"at most {size}, where the file ends"
            )
        if before and info.begin < before.end:
            cursor.fail(f"{what} and tensor {quoted(before.name)} in the same bytes", "each in its own")
        before = info
