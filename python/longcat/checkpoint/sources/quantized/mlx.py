"""MLX's packing: groups of integers with a scale and an offset, or MXFP4.

weight [out, in * bits / 32] holds the integers, lowest bits first; scales and biases are [out, in / group_size]. A
value is scales * integer + biases. It is on a grid of ours where each bias is a whole multiple of its scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from longcat._core import Error
from longcat.checkpoint.sources.quantized.decoding import TWICE_E2M1, as_float32, half_of_e8m0, unpack
from longcat.checkpoint.sources.quantized.matrix import Matrix, Quantized, check, total_bytes
from longcat.checkpoint.sources.quantized.settings import Settings
from longcat.checkpoint.sources.quantized.stored import FLOATS, Array

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
_ROWS = 1024  # whose scales are read at a time


class Mlx:
    """The field "quantization"."""

    parts = ("weight", "scales", "biases")

    def __init__(self, settings: Settings):
        self._settings = settings
        self._default = self._scheme(settings)

    def _scheme(self, settings: Settings) -> tuple[str, int, int]:
        mode = settings.text("mode", ("affine", "mxfp4"), "affine")
        if mode == "mxfp4":
            return mode, settings.integer("bits", (4,), 4), settings.integer("group_size", (32,), 32)
        return mode, settings.integer("bits", BITS), settings.integer("group_size", GROUPS)

    def _scheme_of(self, module: str) -> tuple[str, int, int]:
        override = self._settings.get(module)
        if override is None or override is True:
            return self._default
        if override is False:
            raise Error(f'[convert] "{module}" has scales, but {self._settings.where} says that it is not quantised')
        return self._scheme(self._settings.inner(module))  # its mode is affine unless it says otherwise

    def matrix(self, module: str, stored: dict[str, Array], shape: tuple[int, int]) -> Matrix | None:
        """The matrix of a module, or None when it is not quantised."""
        weight, scales, biases = (stored.get(part) for part in self.parts)
        if scales is None and biases is None and (weight is None or weight.dtype in FLOATS):
            return None
        mode, bits, group_size = self._scheme_of(module)
        missing = [part for part in self.parts[: 3 if mode == "affine" else 2] if part not in stored]
        if weight is None or scales is None or missing:
            raise Error(f'[convert] "{module}" has no {" and no ".join(missing)}: download it again')
        out, width = shape
        if width * bits % 32 or width % group_size:
            raise Error(f'[convert] "{module}" has {width} columns; expected whole groups of {group_size}')
        check(weight, ("I32",), (out, width * bits // 32))
        groups = (out, width // group_size)
        size = total_bytes(weight, scales, biases)

        def codes(begin: int, end: int) -> np.ndarray:
            return unpack(weight.rows(begin, end), bits, width)

        if mode == "mxfp4":
            return mxfp4_matrix(module, "MLX MXFP4", size, width, codes, check(scales, ("U8",), groups))
        assert biases
        check(scales, FLOATS, groups)
        check(biases, (scales.dtype,), groups)
        kind = f"MLX {bits}-bit g{group_size}"
        zeros = _Zeros(scales, biases)
        if grid_bits := zeros.grid_bits(bits):

            def centred(begin: int, end: int) -> np.ndarray:
                integers: np.ndarray = codes(begin, end) - zeros.rows(begin, end).repeat(group_size, axis=1)
                return integers

            return Quantized(module, kind, size, width, centred, scales.rows, scales.dtype, group_size, bits=grid_bits)

        def offsets(begin: int, end: int) -> np.ndarray:
            return as_float32(biases.rows(begin, end), biases.dtype)

        return Quantized(module, kind, size, width, codes, scales.rows, scales.dtype, group_size, offsets)


class _Zeros:
    """The zero points of groups: -biases / scales, where they are whole numbers."""

    def __init__(self, scales: Array, biases: Array):
        self._scales, self._biases = scales, biases

    def _ratio(self, begin: int, end: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            scales, biases = (
                as_float32(array.rows(begin, end), array.dtype).astype(np.float64)
                for array in (self._scales, self._biases)
            )
            ratio = np.where((scales == 0) & (biases == 0), 0.0, -biases / scales)
            whole = np.rint(ratio)
            return np.where(whole * scales == -biases, whole, np.nan)

    def rows(self, begin: int, end: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # the scales of damaged rows are not finite, which is said later
            return self._ratio(begin, end).astype(np.int16)

    def grid_bits(self, bits: int) -> Literal[4, 8] | None:
        """The bits of the integers less their zero points; None: more than 8, or a bias is no multiple of a scale.

        It reads the scales and biases of all rows, or up to the first row that is on no grid.
        """
        if self._scales.dtype not in ("F16", "BF16"):
            return None
        found: Literal[4, 8] = 4
        for begin in range(0, self._scales.shape[0], _ROWS):
            zeros = self._ratio(begin, min(begin + _ROWS, self._scales.shape[0]))
            low, high = -zeros.max(), (1 << bits) - 1 - zeros.min()  # NaN compares as false
            if not (low >= -128 and high <= 127):
                return None
            if low < -8 or high > 7:
                found = 8
        return found


def mxfp4_matrix(
    module: str, kind: str, num_bytes: int, width: int, codes: Callable[[int, int], np.ndarray], scales: Array
) -> Quantized:
    """4-bit floats with power-of-two scales of 32: twice the values are integers, half the scales are bf16."""
    return Quantized(
        module,
        kind,
        num_bytes,
        width,
        lambda begin, end: TWICE_E2M1[codes(begin, end)],
        lambda begin, end: half_of_e8m0(scales.rows(begin, end)),
        "BF16",
        32,
        bits=8,
    )
