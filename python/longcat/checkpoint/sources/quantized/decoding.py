"""Decodes packed integers, small floats and scales."""

from __future__ import annotations

import numpy as np


def _e4m3_values() -> np.ndarray:
    """[256] float32: the values of the OCP's 8-bit float with 4 exponent bits. It has NaN, and no infinity."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10))
    values[127] = np.nan
    both: np.ndarray = np.concatenate([values, -values]).astype(np.float32)
    return both


E4M3 = _e4m3_values()
# Twice the values of the OCP's 4-bit float with 2 exponent bits: integers.
TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def as_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values of F32, F16, BF16 or F8_E4M3 elements."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # NaN: the caller looks for it
        values: np.ndarray = E4M3[bits] if dtype == "F8_E4M3" else bits.astype(np.float32, copy=False)
    return values


def unpack(packed: np.ndarray, bits: int, width: int) -> np.ndarray:
    """Splits rows of packed words: value i of a row is its bits [bits * i, bits * (i + 1)), lowest bit first.

    Args:
        packed: [rows, words] of any integer type.
        bits: 1 to 8.
        width: values in a row.
    Returns:
        [rows, width] uint8.
    """
    raw = np.ascontiguousarray(packed).view(np.uint8)
    rows = len(raw)
    if bits == 8:
        return raw[:, :width]
    if bits == 4:
        return np.stack([raw & 15, raw >> 4], axis=-1).reshape(rows, -1)[:, :width]
    groups = -(-width // 8)  # 8 values take `bits` bytes
    raw = np.pad(raw, [(0, 0), (0, max(0, groups * bits - raw.shape[1]) + 1)])
    octets = np.lib.stride_tricks.sliding_window_view(raw, bits + 1, axis=1)[:, : groups * bits : bits].astype(
        np.uint16
    )
    out = np.empty((rows, groups, 8), np.uint8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        out[:, :, i] = (octets[:, :, byte] | octets[:, :, byte + 1] << 8) >> shift & (1 << bits) - 1
    return out.reshape(rows, -1)[:, :width]


def half_of_e8m0(codes: np.ndarray) -> np.ndarray:
    """The bf16 bits of half the OCP's 8-bit scales: 2^(code - 128). Code 255 is NaN."""
    exponent = codes.astype(np.int32)
    bits = np.where(exponent >= 2, (exponent - 1) << 7, 0x20 << exponent)  # below 2^-126: subnormal
    return np.where(exponent == 255, 0x7FC0, bits).astype(np.uint16)
