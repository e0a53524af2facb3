"""The values of one block of each GGUF type, one by one: the plain twin of longcat.checkpoint.sources.gguf.blocks.

Source: the structs of ggml-common.h and the loops of dequantize_row_* in ggml-quants.c of ggml.
"""

from __future__ import annotations

import numpy as np

f32 = np.float32
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def half(block: bytes, at: int) -> np.float32:
    return np.frombuffer(block[at : at + 2], np.float16).astype(f32)[0]


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def nibble(data: bytes, i: int) -> int:
    """Value i of 32 in 16 bytes: the low halves come first."""
    return data[i % 16] >> (4 if i >= 16 else 0) & 15


def decode(kind: str, block: bytes) -> list[np.float32]:
    """The values of a block."""
    return globals()[kind.lower()](block)


def q4_0(block: bytes) -> list[np.float32]:
    return [half(block, 0) * f32(nibble(block[2:], i) - 8) for i in range(32)]


def q4_1(block: bytes) -> list[np.float32]:
    return [half(block, 0) * f32(nibble(block[4:], i)) + half(block, 2) for i in range(32)]


def q5_0(block: bytes) -> list[np.float32]:
    high = int.from_bytes(block[2:6], "little")
    return [half(block, 0) * f32((nibble(block[6:], i) | (high >> i & 1) << 4) - 16) for i in range(32)]


def q5_1(block: bytes) -> list[np.float32]:
    high = int.from_bytes(block[4:8], "little")
    return [half(block, 0) * f32(nibble(block[8:], i) | (high >> i & 1) << 4) + half(block, 2) for i in range(32)]


def q8_0(block: bytes) -> list[np.float32]:
    return [half(block, 0) * f32(signed(byte)) for byte in block[2:]]


def iq4_nl(block: bytes) -> list[np.float32]:
    return [half(block, 0) * f32(IQ4_NL[nibble(block[2:], i)]) for i in range(32)]


def q2_k(block: bytes) -> list[np.float32]:
    scales, quants, out = block[:16], block[16:80], []
    d, least = half(block, 80), half(block, 82)
    for i in range(256):
        # 128 values use 32 bytes: 2 bits of each byte for 32 values at a time
        q = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
        scale = scales[i // 16]
        out.append(d * f32(scale & 15) * f32(q) - least * f32(scale >> 4))
    return out


def q3_k(block: bytes) -> list[np.float32]:
    high, quants, packed, d = block[:32], block[32:96], block[96:108], half(block, 108)
    out = []
    for i in range(256):
        q = quants[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3
        q -= 0 if high[i % 32] >> i // 32 & 1 else 4
        s = i // 16
        scale = (packed[s % 8] >> 4 * (s // 8) & 15) | (packed[8 + s % 4] >> 2 * (s // 4) & 3) << 4
        out.append(d * f32(scale - 32) * f32(q))
    return out


def scale_and_min(packed: bytes, s: int) -> tuple[int, int]:
    if s < 4:
        return packed[s] & 63, packed[s + 4] & 63
    return (packed[s + 4] & 15) | packed[s - 4] >> 6 << 4, (packed[s + 4] >> 4) | packed[s] >> 6 << 4


def with_min(block: bytes, i: int, q: int) -> np.float32:
    scale, least = scale_and_min(block[4:16], i // 32)
    return half(block, 0) * f32(scale) * f32(q) - half(block, 2) * f32(least)


def q4_k(block: bytes) -> list[np.float32]:
    return [with_min(block, i, block[16 + i // 64 * 32 + i % 32] >> 4 * (i % 64 // 32) & 15) for i in range(256)]


def q5_k(block: bytes) -> list[np.float32]:
    out = []
    for i in range(256):
        q = block[48 + i // 64 * 32 + i % 32] >> 4 * (i % 64 // 32) & 15
        out.append(with_min(block, i, q | (block[16 + i % 32] >> i // 32 & 1) << 4))
    return out


def q6_k(block: bytes) -> list[np.float32]:
    low, high, scales, d = block[:128], block[128:192], block[192:208], half(block, 208)
    out = []
    for i in range(256):
        part, j = divmod(i, 128)
        q = low[part * 64 + j % 64] >> 4 * (j // 64) & 15
        q |= (high[part * 32 + j % 32] >> 2 * (j // 32) & 3) << 4
        out.append(d * f32(signed(scales[i // 16])) * f32(q - 32))
    return out
