"""Random values of tensors: the same on every machine and with every version of NumPy, and as fast as memory copies."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

import longcat._core as _core


@dataclass(frozen=True)
class TensorSpec:
    """Shape and distribution of one tensor. `kind`: "linear" (FP8 in FP8 files), "plain" or "router" (always F32)."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    kind: str = "plain"
    std_tail: tuple[int, float] | None = None  # (n, std): the last n rows have this standard deviation


def stream_key(seed: int, name: str) -> int:
    """The 64-bit key of the stream `name` under `seed`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


def random_bits(seed: int, name: str, count: int, start: int = 0) -> np.ndarray:
    """SplitMix64 in counter mode: numbers `start`.. of the stream `name` under `seed`.

    Args:
        seed: any integer.
        name: stream label, e.g. a tensor name.
        count: number of values.
        start: number of values to skip.
    Returns:
        [count] uint64.
    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = np.uint64(stream_key(seed, name)) + np.uint64(0x9E3779B97F4A7C15) * counter
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class ValuePool:
    """A ring of random 16-bit integers, from which every tensor is read and scaled to its distribution.

    Element i of a tensor is `std * sqrt(12) / 2^16 * ring[(start + i) mod PERIOD] + mean`: uniform, computed in f32.
    (seed, tensor name) give the start, and bf16 keeps the upper half of the f32. A value thus costs a multiplication
    instead of a random number. PERIOD is prime, so the rows of a matrix start at different places of the ring. No two
    rows are equal while there are fewer than PERIOD rows.
    """

    PERIOD = 2**24 - 3
    CHUNK = 1 << 18  # values per call: a few such buffers fit in the cache

    def __init__(self, seed: int):
        self._seed = seed
        # the start is repeated at the end, so that slices never wrap
        self._ring = np.empty(self.PERIOD + self.CHUNK, np.int16)
        words = self._ring[: 2**24 - 4].view(np.uint64)
        for begin in range(0, len(words), self.CHUNK):
            end = min(begin + self.CHUNK, len(words))
            words[begin:end] = random_bits(seed, "ring", end - begin, begin)
        self._ring[2**24 - 4 : self.PERIOD] = random_bits(seed, "ring end", 1).view(np.int16)[0]
        self._ring[self.PERIOD :] = self._ring[: self.CHUNK]
        self._f32 = np.empty(self.CHUNK, np.float32)
        self._bf16 = np.empty(self.CHUNK, np.uint16)

    def chunks(self, name: str, spec: TensorSpec, dtype: str) -> Iterator[np.ndarray]:
        """The tensor in row-major pieces, float32 or bf16 bits (uint16). The next piece overwrites the last."""
        start = stream_key(self._seed, name) % self.PERIOD
        row = math.prod(spec.shape[1:])
        tail_rows, tail_std = spec.std_tail or (0, 0.0)
        done = 0
        for count, std in [((spec.shape[0] - tail_rows) * row, spec.std), (tail_rows * row, tail_std)]:
            scale = np.float32(std * math.sqrt(12) / 2**16)
            end = done + count
            while done < end:
                n = min(self.CHUNK, end - done)
                at = (start + done) % self.PERIOD
                values = np.multiply(self._ring[at : at + n], scale, out=self._f32[:n], dtype=np.float32)
                if spec.mean:
                    values += np.float32(spec.mean)
                if dtype == "bf16":
                    halves = self._bf16[:n]
                    halves[:] = values.view("<u2")[1::2]
                    yield halves
                else:
                    yield values
                done += n


class PackedPool:
    """Rings of random bytes, from which tensors in packed formats are copied (cpp/ops/packed.h describes the formats).

    The integers of a tensor are consecutive bytes of the ring. Each row has one scale: `std` of the tensor over the
    standard deviation of the ring. The most negative integer does not occur, so the mean is 0. (seed, tensor name) give
    the start, as in ValuePool.
    """

    PERIOD = ValuePool.PERIOD
    CHUNK = 1 << 20  # [bytes] of a piece, at least one group of rows
    EMPTY = {"int4": 0x88, "int8": 0}  # a byte of zeros

    def __init__(self, seed: int):
        self._seed = seed
        self._buffer = np.empty(0, np.uint8)

    def chunks(self, name: str, spec: TensorSpec, format: str) -> Iterator[np.ndarray]:
        """The tensor in pieces of whole groups or rows, [bytes] uint8. The next piece overwrites the last.

        Args:
            name: stream label.
            spec: two-dimensional; `mean` is 0.
            format: "int4_x8", "int8_x8", "int4_row", "int8_row" or "fp8_row".
        """
        rows, cols = spec.shape
        num_units, stride = _core.packed_shape(format, rows, cols)  # a unit: 8 rows, or a row
        integers, _, layout = format.partition("_")
        columns = -(-cols // 32) * 32 if layout == "x8" else cols
        value_bytes = -(-columns * (8 if layout == "x8" else 1) // (2 if integers == "int4" else 1))
        ring, ring_std = getattr(self, f"_{integers}_ring")
        at = stream_key(self._seed, name) % self.PERIOD
        most = max(1, self.CHUNK // stride)
        if self._buffer.size < most * stride:
            self._buffer = np.empty(most * stride, np.uint8)
        for first in range(0, num_units, most):
            count = min(most, num_units - first)
            units = self._buffer[: count * stride].reshape(count, stride)
            size = count * value_bytes
            units[:, :value_bytes] = ring[at : at + size].reshape(count, value_bytes)
            at = (at + size) % self.PERIOD
            scales = _row_scales(spec, ring_std, layout, first, count)
            if layout == "x8":
                block_scales = np.repeat((scales.view(np.uint32) >> 16).astype("<u2")[:, None], columns // 32, axis=1)
                tail = block_scales.reshape(count, -1).view(np.uint8)
            else:
                tail = scales.astype("<f4").view(np.uint8)
            units[:, value_bytes : value_bytes + tail.shape[1]] = tail
            units[:, value_bytes + tail.shape[1] :] = 0
            if layout == "x8":
                _clear_columns(units[:, :value_bytes], integers, cols)
                if first + count == num_units and rows % 8:
                    last = units[-1, :value_bytes].reshape(-1, 8, 4)
                    last[:, rows % 8 :] = self.EMPTY[integers]
            elif integers == "int4" and cols % 2:
                units[:, value_bytes - 1] = units[:, value_bytes - 1] & 0x0F | 0x80
            yield units.reshape(-1)

    @cached_property
    def _int4_ring(self) -> tuple[np.ndarray, float]:
        ring = self._random_bytes("int4 ring")
        ring[ring & 0x0F == 0] |= 0x08  # -8 becomes 0
        ring[ring & 0xF0 == 0] |= 0x80
        return ring, math.sqrt(2 * sum(k * k for k in range(1, 8)) / 16)

    @cached_property
    def _int8_ring(self) -> tuple[np.ndarray, float]:
        ring = self._random_bytes("int8 ring")
        ring[ring == 0x80] = 0  # -128 becomes 0
        return ring, math.sqrt(2 * sum(k * k for k in range(1, 128)) / 256)

    @cached_property
    def _fp8_ring(self) -> tuple[np.ndarray, float]:
        ring = self._random_bytes("fp8 ring")
        ring[ring & 0x7F == 0x7F] = 0  # NaN becomes 0
        exponents, rest = np.divmod(np.arange(127), 8)
        values = np.ldexp(np.where(exponents > 0, 8, 0) + rest, np.maximum(exponents, 1) - 10)
        return ring, math.sqrt(2 * np.square(values).sum() / 256)

    def _random_bytes(self, label: str) -> np.ndarray:
        ring = np.empty(self.PERIOD + 3 + self.CHUNK, np.uint8)  # as in ValuePool, slices never wrap
        words = ring[: self.PERIOD + 3].view(np.uint64)
        for begin in range(0, len(words), ValuePool.CHUNK):
            end = min(begin + ValuePool.CHUNK, len(words))
            words[begin:end] = random_bits(self._seed, label, end - begin, begin)
        ring[self.PERIOD :] = ring[: 3 + self.CHUNK]
        return ring


def _row_scales(spec: TensorSpec, ring_std: float, layout: str, first: int, count: int) -> np.ndarray:
    """[units, rows of a unit] float32; 0 beyond the last row."""
    rows_of_unit = 8 if layout == "x8" else 1
    tail_rows, tail_std = spec.std_tail or (0, 0.0)
    rows = np.arange(first * rows_of_unit, (first + count) * rows_of_unit)
    std = np.where(rows < spec.shape[0] - tail_rows, spec.std, tail_std) * (rows < spec.shape[0])
    return (std / ring_std).astype(np.float32).reshape(count, rows_of_unit)


def _clear_columns(values: np.ndarray, integers: str, cols: int) -> None:
    """Sets the columns behind the last one to 0 in values [units, bytes] of an x8 format."""
    left = cols % 32
    if left == 0:
        return
    block = values[:, -(32 * 8 // (2 if integers == "int4" else 1)) :].reshape(len(values), -1, 8, 4)  # a copy
    column = np.arange(block.shape[1] * 4).reshape(-1, 1, 4)
    if integers == "int4":
        low = np.where(column < left, block & 0x0F, 0x08)
        block = low | np.where(column + 16 < left, block & 0xF0, 0x80)
    else:
        block = np.where(column < left, block, 0)
    values[:, -block[0].size :] = block.reshape(len(values), -1)
