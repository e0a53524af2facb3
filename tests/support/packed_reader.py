"""A reader of the packed formats, written from docs/formats.md alone."""

import json

import numpy as np

EXPONENTS, REST = np.divmod(np.arange(128), 8)
E4M3 = np.ldexp(np.where(EXPONENTS > 0, 8, 0) + REST, np.maximum(EXPONENTS, 1) - 10)


def read_packed(folder, name, rows, columns):
    """The matrix [rows, columns] of a packed tensor, as float32."""
    index = folder / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"][name] if index.exists() else "model.safetensors"
    data = (folder / file).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header["__metadata__"]["longcat_format_version"] == "1"
    begin, end = header[name]["data_offsets"]
    packed = np.frombuffer(data[start + begin : start + end], np.uint8).reshape(header[name]["shape"])
    return unpack(packed, name.rpartition(".")[2], rows, columns)


def unpack(packed, format, rows, columns):
    units, blocks, is_x8, is_int4 = len(packed), -(-columns // 32), "_x8" in format, "int4" in format
    if format == "bf16_x8":
        pairs = packed[:, : -(-columns // 2) * 32].copy().view("<u2").reshape(units, -1, 8, 2)
        return bf16(pairs.transpose(0, 2, 1, 3).reshape(units * 8, -1))[:rows, :columns]
    size = blocks * (128 if is_int4 else 256) if is_x8 else -(-columns // 2) if is_int4 else columns
    values, scales = packed[:, :size], packed[:, size:].copy()
    numbers = np.stack([values & 15, values >> 4], -1).astype(np.float32) - 8 if is_int4 else values.view(np.int8)
    if format == "fp8_row":
        numbers = np.where(values < 128, 1, -1) * E4M3[values % 128]
    if not is_x8:
        scales = scales.view("<f4") if format.endswith("_row") else scales.view("<f2").astype(np.float32).repeat(32, 1)
        return numbers.reshape(rows, -1)[:, :columns].astype(np.float32) * scales[:, :columns]
    if is_int4:  # block, pair, row, column, half -> row, block, half, pair, column
        numbers = numbers.reshape(units, blocks, 4, 8, 4, 2).transpose(0, 3, 1, 5, 2, 4)
    else:  # block, quad, row, column -> row, block, quad, column
        numbers = numbers.reshape(units, blocks, 8, 8, 4).transpose(0, 3, 1, 2, 4)
    bits = scales[:, : blocks * 16].copy().view("<u2").reshape(units, blocks, 8).transpose(0, 2, 1).copy()
    scales = bits.view("<f2").astype(np.float32) if format.endswith("_f16") else bf16(bits)
    return (numbers.reshape(units * 8, -1) * scales.reshape(units * 8, -1).repeat(32, 1))[:rows, :columns]


def bf16(bits):
    return (bits.astype("<u4") << 16).view("<f4")
