"""A GGUF file as a source of weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import numpy as np

from longcat.checkpoint.sources.gguf.blocks import BLOCKS, Block
from longcat.checkpoint.sources.gguf.config import architecture, make_config, num_layers
from longcat.checkpoint.sources.gguf.header import TensorInfo, open_parts
from longcat.checkpoint.sources.gguf.names import KeyValue, Rows, place
from longcat.checkpoint.sources.gguf.text_files import text_files
from longcat.checkpoint.sources.source import Grid, SourceTensor
from longcat.support.json_types import JsonObject


class GgufModel:
    """A model in a GGUF file, or in several: a WeightSource.

    Args:
        path: the file, or one of several of the names NAME-00001-of-00003.gguf.
    Raises:
        longcat.Error: a file is missing or damaged, or holds another model.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = os.fspath(path)
        self.notes: list[str] = []
        self._parts = open_parts(path)
        first = self._parts[0]
        infos = {info.name: info for part in self._parts for info in part.tensors}
        is_sparse = architecture(first) == "longcat-flash-sparse"
        self._config = make_config(first, infos)
        self._places, self.unused = place(first, infos, num_layers(first), is_sparse)
        self._check_heads()
        self.folder_files = {"config.json": (json.dumps(self._config, indent=2) + "\n").encode(), **text_files(first)}

    @property
    def path(self) -> str:
        """The file that was given."""
        return self._path

    @property
    def identity(self) -> JsonObject:
        """Name, size and time of change of each file."""
        return {part.path.name: [part.size, part.mtime_ns] for part in self._parts}

    def tensors(self) -> Mapping[str, SourceTensor]:
        """The tensors by our names, in the order of the files."""
        return {name: _described(found) for name, found in self._places.items()}

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """As WeightSource.rows."""
        found = self._places[name]
        if isinstance(found, KeyValue):
            return self._key_value_rows(found, begin, end)
        return self._values(found.tensor, found.first_row + begin, found.first_row + end)

    def grid_rows(self, name: str, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """As WeightSource.grid_rows."""
        found = self._places[name]
        split = BLOCKS[found.tensor.type].grid if isinstance(found, Rows) else None
        if not isinstance(found, Rows) or split is None:
            raise ValueError(f"{name} has no grid")
        integers, scales = split(self._blocks(found.tensor, found.first_row + begin, found.first_row + end))
        return integers.reshape(end - begin, -1), scales.reshape(end - begin, -1)

    def _check_heads(self) -> None:
        heads, nope = self._config["num_attention_heads"], self._config["qk_nope_head_dim"]
        for name, found in self._places.items():
            if isinstance(found, KeyValue) and (found.heads, found.nope) != (heads, nope):
                self._parts[0].fail(
                    f"has {name} of {found.heads} heads of width {found.nope}; expected {heads} of {nope}, as its "
                    "metadata say"
                )

    def _blocks(self, info: TensorInfo, begin: int, end: int) -> np.ndarray:
        """[blocks, bytes] of rows [begin, end), counted over all but the last dimension."""
        data = self._parts[info.file].read(info.begin + begin * info.row_bytes, (end - begin) * info.row_bytes)
        return data.reshape(-1, BLOCKS[info.type].bytes)

    def _values(self, info: TensorInfo, begin: int, end: int) -> np.ndarray:
        with np.errstate(all="ignore"):  # values that are not finite are reported by the writer
            values = BLOCKS[info.type].values(self._blocks(info, begin, end))
        return values.reshape(end - begin, -1)

    def _key_value_rows(self, found: KeyValue, begin: int, end: int) -> np.ndarray:
        height = found.nope + found.v_head_dim
        first, last = begin // height, -(-end // height)
        out = np.empty((last - first, height, found.latent), np.float32)
        for head in range(first, last):
            k = self._values(found.k, head * found.latent, (head + 1) * found.latent)
            out[head - first, : found.nope] = k.T
            out[head - first, found.nope :] = self._values(
                found.v, head * found.v_head_dim, (head + 1) * found.v_head_dim
            )
        return out.reshape(-1, found.latent)[begin - first * height : end - first * height]


def _described(found: Rows | KeyValue) -> SourceTensor:
    if isinstance(found, KeyValue):
        k, v = BLOCKS[found.k.type], BLOCKS[found.v.type]
        names = k.name if k == v else f"{k.name} and {v.name}"
        num_bytes = found.k.end - found.k.begin + found.v.end - found.v.begin
        return SourceTensor(found.shape, names, num_bytes, k.dtype if k == v else None)
    block = BLOCKS[found.tensor.type]
    num_rows = found.shape[0] if len(found.shape) == 2 else 1
    return SourceTensor(
        found.shape, block.name, num_rows * found.tensor.row_bytes, block.dtype, _grid(block, found.shape)
    )


def _grid(block: Block, shape: tuple[int, ...]) -> Grid | None:
    return Grid(block.bits, "f16") if block.bits and len(shape) == 2 else None
