"""Stored matrices that give rows of float32, or of a grid: scale * integer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.quantized.decoding import as_float32
from longcat.checkpoint.sources.quantized.stored import FLOATS, Array
from longcat.checkpoint.sources.source import Grid

BLOCK = 32  # columns that share a scale in a grid
_SCALES: dict[str, Literal["f16", "bf16"]] = {"F16": "f16", "BF16": "bf16"}


class Matrix(Protocol):
    """A matrix, or a vector, of the model."""

    @property
    def format(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def dtype(self) -> Literal["F32", "F16", "BF16"] | None: ...
    @property
    def grid(self) -> Grid | None: ...
    def rows(self, begin: int, end: int) -> np.ndarray: ...
    def grid_rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]: ...


class Dense:
    """Floats as they are."""

    grid = None

    def __init__(self, array: Array):
        self.array = array
        self.dtype: Literal["F32", "F16", "BF16"] = array.dtype  # type: ignore[assignment]
        self.format: str = array.dtype
        self.num_bytes = array.num_bytes

    def rows(self, begin: int, end: int) -> np.ndarray:
        array = self.array
        bits = array.all()[None, :] if len(array.shape) == 1 else array.rows(begin, end)
        return as_float32(bits, array.dtype)

    def grid_rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        raise Error(f'[internal] "{self.array.name}" has no grid')


@dataclass(frozen=True)
class Quantized:
    """Values times the scales of their groups.

    Attributes:
        name: of the module, for messages.
        format: in the words of its project.
        num_bytes: of its tensors.
        columns: in a row.
        values: rows [begin, end) as [rows, columns], integers from -255 to 255 or floats; without a scale.
        scales: rows [begin, end) as [rows, groups], the bits of `scale_dtype`.
        group_of: [columns] the group of each column, or the number of columns of each group.
        offsets: rows [begin, end) as [rows, groups] float32, added after the product; None: zeros.
        bits: of the integers, which every part of the matrix keeps to; None: they are none, or wider.
    """

    name: str
    format: str
    num_bytes: int
    columns: int
    values: Callable[[int, int], np.ndarray]
    scales: Callable[[int, int], np.ndarray]
    scale_dtype: str
    group_of: np.ndarray | int
    offsets: Callable[[int, int], np.ndarray] | None = None
    bits: Literal[4, 8] | None = None
    dtype: None = None

    @property
    def grid(self) -> Grid | None:
        if self.bits is None or self.scale_dtype not in _SCALES or not isinstance(self.group_of, int):
            return None
        if self.columns % BLOCK or (self.group_of % BLOCK and self.group_of < self.columns):
            return None
        return Grid(self.bits, _SCALES[self.scale_dtype])

    def rows(self, begin: int, end: int) -> np.ndarray:
        values = self.values(begin, end).astype(np.float32, order="C")
        scales = self._spread(self._finite(begin, as_float32(self.scales(begin, end), self.scale_dtype)))
        with np.errstate(over="ignore", invalid="ignore"):  # the writer refuses what is not finite
            values *= scales
            if self.offsets:
                values += self._spread(self._finite(begin, self.offsets(begin, end)))
        return values

    def grid_rows(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.bits and isinstance(self.group_of, int)
        values, scales = self.values(begin, end), self.scales(begin, end)
        self._finite(begin, as_float32(scales, self.scale_dtype))
        low, high = -(1 << self.bits - 1), (1 << self.bits - 1) - 1
        outside = (values < low) | (values > high)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise Error(
                f'[convert] "{self.name}", row {begin + row}, column {column} has {values[row, column]} after its zero '
                f"point; expected {low} to {high}, as its configuration says: download it again"
            )
        repeated = scales.view(np.uint16).repeat(-(-min(self.group_of, self.columns) // BLOCK), axis=1)
        return values.astype(np.int8, order="C"), np.ascontiguousarray(repeated[:, : self.columns // BLOCK])

    def _spread(self, groups: np.ndarray) -> np.ndarray:
        """[rows, groups] -> [rows, columns]."""
        if not isinstance(self.group_of, int):
            return groups[:, self.group_of]
        return groups.repeat(min(self.group_of, self.columns), axis=1)[:, : self.columns]

    def _finite(self, begin: int, scales: np.ndarray) -> np.ndarray:
        if not np.isfinite(scales).all():
            row, group = np.argwhere(~np.isfinite(scales))[0]
            raise Error(
                f'[convert] "{self.name}", row {begin + row}, group {group} has the scale {scales[row, group]}; '
                "expected a finite one: download it again"
            )
        return scales


def check(array: Array, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> Array:
    """Raises longcat.Error unless the array has one of the dtypes and one of the shapes."""
    if array.dtype not in dtypes or array.shape not in shapes:
        wanted = " or ".join(f"{list(shape)}" for shape in dict.fromkeys(shapes))
        raise Error(f"[convert] {array}; expected {' or '.join(dtypes)} {wanted}: download it again")
    return array


def check_dense(array: Array, shape: tuple[int, ...]) -> Array:
    return check(array, FLOATS, shape)


def total_bytes(*arrays: Array | None) -> int:
    return sum(array.num_bytes for array in arrays if array)
