"""FP8 weights with a scale for a block, a row or a matrix: weight in F8_E4M3, weight_scale_inv or weight_scale.

The official checkpoint, with blocks of 128 x 128 and one module per expert, needs no reader: the engine maps it.
"""

from __future__ import annotations

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.quantized.decoding import E4M3
from longcat.checkpoint.sources.quantized.matrix import Matrix, Quantized, check, total_bytes
from longcat.checkpoint.sources.quantized.settings import Settings, first_match
from longcat.checkpoint.sources.quantized.stored import Array


class Fp8:
    """quant_method "fp8"."""

    parts = ("weight", "weight_scale_inv", "weight_scale", "input_scale")

    def __init__(self, settings: Settings):
        settings.text("fmt", ("e4m3",), "e4m3")
        settings.text("activation_scheme", ("dynamic", "static"), "dynamic")
        self._where = settings.where
        self._ignored = [n for field in ("ignored_layers", "modules_to_not_convert") for n in settings.texts(field)]
        has_blocks = settings.get("weight_block_size") is not None
        self._block = settings.block("weight_block_size") if has_blocks else None

    def matrix(self, module: str, stored: dict[str, Array], shape: tuple[int, int]) -> Matrix | None:
        """The matrix of a module, or None when it is not quantised."""
        weight = stored.get("weight")
        scales = stored.get("weight_scale_inv") or stored.get("weight_scale")
        if weight is None or weight.dtype != "F8_E4M3":
            if scales:
                raise Error(f'[convert] "{module}" has scales without F8_E4M3 weights: download it again')
            return None
        if ignored := first_match(self._ignored, module):
            raise Error(f'[convert] {weight}, but {self._where}.ignored_layers has "{ignored}"; expected BF16')
        if scales is None:
            raise Error(f'[convert] "{module}" has no weight_scale_inv and no weight_scale: download it again')
        return fp8_matrix(module, check(weight, ("F8_E4M3",), shape), scales, self._block)


def fp8_matrix(module: str, weight: Array, scales: Array, block: tuple[int, int] | None) -> Quantized:
    """e4m3 weights with scales of blocks, or, without `block`, of rows or of the matrix.

    Raises:
        longcat.Error: the scales have another dtype or shape.
    """
    out, width = weight.shape
    if block:
        high, wide = block
        check(scales, ("F32", "BF16", "F16"), (-(-out // high), -(-width // wide)))
    else:
        high, wide = 1, width
        check(scales, ("F32", "BF16", "F16"), (), (1,), (1, 1), (out,), (out, 1))

    def values(begin: int, end: int) -> np.ndarray:
        found: np.ndarray = E4M3[weight.rows(begin, end)]
        if np.isnan(found).any():
            row, column = np.argwhere(np.isnan(found))[0]
            raise Error(
                f'[convert] "{weight.name}", row {begin + row}, column {column} is nan; expected a finite value'
            )
        return found

    def scale_rows(begin: int, end: int) -> np.ndarray:
        if not block and (not scales.shape or scales.shape[0] == 1 < out):
            return scales.all().reshape(1, 1).repeat(end - begin, axis=0)
        first = begin // high
        part = scales.rows(first, -(-end // high)).reshape(-(-end // high) - first, -1)
        return part.repeat(high, axis=0)[begin - first * high : end - first * high]

    size = f"{high}x{wide}" if block else "row" if scales.shape and scales.shape[0] == out else "matrix"
    return Quantized(
        module,
        f"FP8 with a scale for each {size}",
        total_bytes(weight, scales),
        width,
        values,
        scale_rows,
        scales.dtype,
        wide,
    )
