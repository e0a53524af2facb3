"""Parts of a checkpoint writer: headers, shards, an index, hashes, and a check of the disk space."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import longcat._core as _core
from longcat._core import Error
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text

MAX_SHARD_BYTES = 5 * 10**9  # tensor bytes per file, as save_pretrained; a larger tensor gets its own file
INDEX_FILE = "model.safetensors.index.json"
HASH_FILE = "SHA256SUMS"  # the format of `sha256sum`
ALIGNMENT = 64  # [bytes] alignment of a file's first tensor: a cache line


def header(tensors: Iterable[tuple[str, str, Iterable[int], int]]) -> bytes:
    """The bytes before a file's tensors. tensors: (name, dtype, shape, bytes), in file order.

    Packed tensors bring the version of their formats, which a reader that knows another one refuses.
    """
    metadata = {"format": "pt"}
    fields: JsonObject = {"__metadata__": metadata}
    offset = 0
    for name, dtype, shape, num_bytes in tensors:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        if name.rpartition(".")[2] in _core.PACKED_FORMATS:
            metadata[_core.FORMAT_VERSION_KEY] = _core.FORMAT_VERSION
        offset += num_bytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


class HashedStream:
    """A stream that hashes what is written to it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data)
        if view.nbytes:
            self._digest.update(view.cast("B"))
        return self._stream.write(data)

    def store_hash(self, path: Path) -> None:
        """Adds a line for the file `path` to SHA256SUMS beside it."""
        with open(path.with_name(HASH_FILE), "a", encoding="utf-8") as sums:
            sums.write(f"\n{self._digest.hexdigest()}  {path.name}\n")  # the line before may have been cut off


@contextmanager
def new_shard(path: Path) -> Iterator[BinaryIO]:
    """Writes a file that has its name once the disk has all of it, and whose hash SHA256SUMS beside it then has."""
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as stream:
        hashed = HashedStream(stream)
        yield cast(BinaryIO, hashed)
        stream.flush()
        os.fsync(stream.fileno())
    hashed.store_hash(path)
    unfinished.rename(path)


def finish_hashes(folder: Path) -> None:
    """Adds the files beside the weights to SHA256SUMS, and sorts it by names. A failure leaves it as it was."""
    hashes = {}
    if (folder / HASH_FILE).exists():
        for line in (folder / HASH_FILE).read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            hashes[name] = digest  # a file that was written twice has two lines; the last one counts
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    for name in names:
        if name != HASH_FILE and not name.endswith(".safetensors"):
            hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    unfinished = folder / f".{HASH_FILE}.unfinished"
    unfinished.write_text("".join(f"{hashes[name]}  {name}\n" for name in names if name in hashes))
    unfinished.replace(folder / HASH_FILE)


def split(sizes: Mapping[str, int], max_shard_bytes: int, more_files: bool = False) -> dict[str, list[str]]:
    """file name -> tensors, as many in order as fit. A single file has no number, unless more_files follow."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    if len(shards) == 1 and not more_files:
        return {"model.safetensors": shards[0]}
    return {f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards)}


def place_of(target: Path) -> tuple[Path, Path]:
    """Returns a new folder by its name, also one that is given as ".", and the folder beside it that becomes it."""
    if target.name in ("", ".."):
        target = Path(os.path.abspath(target))
    return target, target.parent / f"{target.name}.partial"


def check_new(command: str, target: Path) -> None:
    """Raises longcat.Error when `target` exists and is not an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Error(f"[{command}] {target} exists; expected a new or an empty folder")


def check_room(command: str, target: Path, total: int, remedy: str) -> None:
    """Raises longcat.Error when `total` bytes do not fit on the disk of `target`."""
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if total > free:
        raise Error(
            f"[{command}] {target} takes {bytes_text(total)}, {bytes_text(free)} are free on its disk: {remedy}"
        )


def write_index(folder: Path, files: Mapping[str, Iterable[str]], total_bytes: int) -> None:
    """Writes the index: the file of each tensor."""
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
