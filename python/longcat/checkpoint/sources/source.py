"""What a reader of another format provides: the small files of a checkpoint, and its tensors row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from longcat.support.json_types import JsonObject


@dataclass(frozen=True)
class Grid:
    """Values that are scale * integer exactly, with one scale for each 32 columns of a row.

    Wider groups of columns repeat their scale.
    """

    bits: Literal[4, 8]  # 4: integers from -8 to 7; 8: from -128 to 127
    scale: Literal["f16", "bf16"]


@dataclass(frozen=True)
class SourceTensor:
    """A tensor of a source, under the name that the Hugging Face checkpoint gives it."""

    shape: tuple[int, ...]  # [rows, columns], or [elements]
    format: str  # in the source's own words, as in "Q4_K"; for messages
    num_bytes: int  # in the source
    dtype: Literal["F32", "F16", "BF16"] | None = None  # holds the values exactly; None: they are quantised
    grid: Grid | None = None  # None: the values are on no such grid, or the columns are not whole blocks of 32


class WeightSource(Protocol):
    """A checkpoint in another format. Its methods are called from several threads.

    Every method and property raises longcat.Error, with one line, for damaged contents.
    """

    @property
    def path(self) -> str:
        """The file or folder, for messages."""

    @property
    def identity(self) -> JsonObject:
        """The files with sizes and times of change. An interrupted import continues only for the same identity."""

    @property
    def notes(self) -> Sequence[str]:
        """Lines for the user: where the weights differ from what their config.json says."""

    @property
    def folder_files(self) -> Mapping[str, bytes]:
        """File name -> contents of the small files beside the weights: config.json, tokenizer.json, chat template."""

    def tensors(self) -> Mapping[str, SourceTensor]:
        """The tensors by name, in the order in which they are read fastest."""

    def rows(self, name: str, begin: int, end: int) -> np.ndarray:
        """The values of rows [begin, end) as [end - begin, columns] float32. A vector is one row."""

    def grid_rows(self, name: str, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The grid of rows [begin, end), only of a tensor with a grid.

        Returns:
            ([end - begin, columns] int8, [end - begin, columns / 32] uint16: the bits of the f16 or bf16 scales).
        """
