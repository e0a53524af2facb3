"""Headers and indexes of safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

INDEX_FILE = "model.safetensors.index.json"
ALIGNMENT = 64  # [bytes] of the first tensor in the file: a cache line


def header(tensors: Iterable[tuple[str, str, Iterable[int], int]]) -> bytes:
    """The bytes before the tensors of a file. tensors: (name, dtype, shape, bytes), in the order they follow."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, num_bytes in tensors:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write_index(folder: Path, files: Mapping[str, Iterable[str]], total_bytes: int) -> None:
    """Which file holds which tensor."""
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
