"""Parts of a checkpoint writer: headers, shards, an index, and a check of the disk space."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from longcat._core import Error
from longcat.support.json_types import JsonObject
from longcat.support.text import bytes_text

MAX_SHARD_BYTES = 5 * 10**9  # tensor bytes per file, as save_pretrained; a larger tensor gets its own file
INDEX_FILE = "model.safetensors.index.json"
ALIGNMENT = 64  # [bytes] alignment of a file's first tensor: a cache line


def header(tensors: Iterable[tuple[str, str, Iterable[int], int]]) -> bytes:
    """The bytes before a file's tensors. tensors: (name, dtype, shape, bytes), in file order."""
    fields: JsonObject = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, num_bytes in tensors:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


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
