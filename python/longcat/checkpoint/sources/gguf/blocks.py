"""The types of GGUF tensors: how a row is stored in blocks, and its values as floats or as integers with scales.

A decoder takes [blocks, bytes] uint8. All arithmetic is in float32 and in the order of ggml's own functions, so that
the values are the same, bit for bit. Source: ggml-common.h (the blocks) and ggml-quants.c (dequantize_row_*) of ggml.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Decode = Callable[[np.ndarray], np.ndarray]
Split = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

_F32 = np.float32
_SUPER = 256  # values of a block of the K types


@dataclass(frozen=True)
class Block:
    """A type of tensors.

    `values` maps [blocks, bytes] to [blocks, size] float32. `grid`, of types whose values are a scale times integers,
    maps it to ([blocks, size] int8, [blocks, size / 32] uint16: the bits of float16 scales).
    """

    name: str
    size: int  # values in a block
    bytes: int
    values: Decode
    dtype: Literal["F32", "F16", "BF16"] | None = None  # of types that are not quantised
    bits: Literal[4, 8] | None = None  # of the integers of `grid`
    grid: Split | None = None

    def bytes_of(self, columns: int) -> int:
        """Size of a row of whole blocks [bytes]."""
        return columns // self.size * self.bytes


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """[blocks, 1] float32: the float16 at byte `at` of each block."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(_F32)


def _half_bits(blocks: np.ndarray, at: int) -> np.ndarray:
    """[blocks, 1] uint16: the bits of the same."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.uint16)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[blocks, 2 n] uint8 of [blocks, n]: all low halves, then all high halves."""
    out = np.empty((len(packed), 2, packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=out[:, 0])
    np.right_shift(packed, 4, out=out[:, 1])
    return out.reshape(len(packed), -1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """[blocks, 8 n] uint8 of [blocks, n]: bit i of the little-endian number as 0 or 16."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _scaled(split: Split) -> Decode:
    """The values of a grid."""

    def values(blocks: np.ndarray) -> np.ndarray:
        integers, scales = split(blocks)
        out = integers.astype(_F32).reshape(len(blocks), scales.shape[1], -1)
        out *= scales.view(np.float16).astype(_F32)[:, :, None]
        return out.reshape(len(blocks), -1)

    return values


# --- floats ----------------------------------------------------------------------------------------------------------


def _f32(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(_F32)


def _f16(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks).view(np.float16).astype(_F32)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(blocks).view(np.uint16).astype(np.uint32) << 16).view(_F32)


# --- blocks of 32 ----------------------------------------------------------------------------------------------------


def _q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half_bits(blocks, 0)


def _q4_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    integers = _nibbles(blocks[:, 2:]).view(np.int8)
    integers -= np.int8(8)
    return integers, _half_bits(blocks, 0)


def _q5_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    integers = (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).view(np.int8) - np.int8(16)
    return integers, _half_bits(blocks, 0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    out = _nibbles(blocks[:, 4:]).astype(_F32)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)
    return out


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    out: np.ndarray = (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])).astype(_F32)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)
    return out


_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)


def _iq4_nl(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _IQ4_NL[_nibbles(blocks[:, 2:])], _half_bits(blocks, 0)


# --- blocks of 256 ---------------------------------------------------------------------------------------------------


def _shifted(packed: np.ndarray, width: int, shifts: tuple[int, ...], mask: int) -> np.ndarray:
    """[blocks, groups, shifts, width] uint8: each group of `width` bytes at each shift, masked."""
    groups = packed.reshape(len(packed), -1, 1, width)
    out = groups >> np.array(shifts, np.uint8)[:, None]
    out &= np.uint8(mask)
    return out


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    scales, n = blocks[:, :16], len(blocks)
    step = _half(blocks, 80) * (scales & 15).astype(_F32)
    least = _half(blocks, 82) * (scales >> 4).astype(_F32)
    integers = _shifted(blocks[:, 16:80], 32, (0, 2, 4, 6), 3).reshape(n, 16, 16)
    out = integers.astype(_F32)
    out *= step[:, :, None]
    out -= least[:, :, None]
    return out.reshape(n, _SUPER)


def _q3_k(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 16 scales are d times 6-bit integers, so that each value is d times an integer from -124 to 128.

    Negated, the integers fit in int8, and so does -d in float16.
    """
    n = len(blocks)
    packed = blocks[:, 96:108]
    scales = _nibbles(packed[:, :8]) | _shifted(packed[:, 8:], 4, (0, 2, 4, 6), 3).reshape(n, 16) << 4
    integers = _shifted(blocks[:, 32:96], 32, (0, 2, 4, 6), 3).reshape(n, 8, 32)
    is_high = _shifted(blocks[:, :32], 32, tuple(range(8)), 1).reshape(n, 8, 32)
    values = (integers | is_high << 2).view(np.int8) - np.int8(4)
    negated = values.reshape(n, 16, 16) * (np.int8(32) - scales.view(np.int8))[:, :, None]
    bits = _half_bits(blocks, 108) ^ np.uint16(0x8000)
    return negated.reshape(n, _SUPER), np.repeat(bits, 8, axis=1)


def _scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two times [blocks, 8] float32, of 12 bytes: 6 bits each."""
    first, second, high = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (high & 15) | (first >> 6) << 4], axis=1)
    mins = np.concatenate([second & 63, (high >> 4) | (second >> 6) << 4], axis=1)
    return scales.astype(_F32), mins.astype(_F32)


def _with_mins(blocks: np.ndarray, integers: np.ndarray) -> np.ndarray:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scales *= _half(blocks, 0)
    mins *= _half(blocks, 2)
    out = integers.astype(_F32)
    out *= scales[:, :, None]
    out -= mins[:, :, None]
    return out.reshape(len(blocks), _SUPER)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _with_mins(blocks, _shifted(blocks[:, 16:], 32, (0, 4), 15).reshape(len(blocks), 8, 32))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    integers = _shifted(blocks[:, 48:], 32, (0, 4), 15).reshape(len(blocks), 8, 32)
    integers |= _shifted(blocks[:, 16:48], 32, tuple(range(8)), 1).reshape(len(blocks), 8, 32) << 4
    return _with_mins(blocks, integers)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    n = len(blocks)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(_F32) * _half(blocks, 208)
    integers = _shifted(blocks[:, :128], 64, (0, 4), 15).reshape(n, _SUPER)
    integers |= _shifted(blocks[:, 128:192], 32, (0, 2, 4, 6), 3).reshape(n, _SUPER) << 4
    out = (integers.view(np.int8) - np.int8(32)).astype(_F32).reshape(n, 16, 16)
    out *= scales[:, :, None]
    return out.reshape(n, _SUPER)


def _grid(name: str, num_bytes: int, bits: Literal[4, 8], split: Split, size: int = 32) -> Block:
    return Block(name, size, num_bytes, _scaled(split), None, bits, split)


# GGML's number of a type -> how it is read.
BLOCKS = {
    0: Block("F32", 1, 4, _f32, "F32"),
    1: Block("F16", 1, 2, _f16, "F16"),
    2: _grid("Q4_0", 18, 4, _q4_0),
    3: Block("Q4_1", 32, 20, _q4_1),
    6: _grid("Q5_0", 22, 8, _q5_0),
    7: Block("Q5_1", 32, 24, _q5_1),
    8: _grid("Q8_0", 34, 8, _q8_0),
    10: Block("Q2_K", _SUPER, 84, _q2_k),
    11: _grid("Q3_K", 110, 8, _q3_k, _SUPER),
    12: Block("Q4_K", _SUPER, 144, _q4_k),
    13: Block("Q5_K", _SUPER, 176, _q5_k),
    14: Block("Q6_K", _SUPER, 210, _q6_k),
    20: _grid("IQ4_NL", 18, 8, _iq4_nl),
    30: Block("BF16", 1, 2, _bf16, "BF16"),
}

# Types that exist and are not read, for messages.
_OTHERS = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"},
    **{23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0"},
    **{39: "MXFP4", 40: "NVFP4"},
}


def type_name(code: int) -> str:
    """The name of a type, or its number."""
    return BLOCKS[code].name if code in BLOCKS else _OTHERS.get(code, str(code))
