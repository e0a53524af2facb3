"""The types of GGUF tensors: values and grids."""

import numpy as np
import pytest
from longcat.checkpoint.sources.gguf.blocks import BLOCKS

from reference import gguf_blocks
from support.gguf_files import TYPES, blocks

QUANTISED = [name for name, (_, size, *_) in TYPES.items() if size > 1]


def random_blocks(kind: str, count: int) -> np.ndarray:
    size, num_bytes = TYPES[kind][1:3]
    data = blocks(np.random.default_rng(7), kind, count * size)
    return np.frombuffer(data, np.uint8).reshape(count, num_bytes)


@pytest.mark.parametrize("kind", QUANTISED)
def test_values_are_those_of_the_plain_loops(kind):
    raw = random_blocks(kind, 20)
    expected = np.array([gguf_blocks.decode(kind, block.tobytes()) for block in raw], np.float32)
    found = BLOCKS[TYPES[kind][0]].values(raw)
    assert found.dtype == np.float32 and (found == expected).all()


@pytest.mark.parametrize("kind", [name for name in QUANTISED if BLOCKS[TYPES[name][0]].grid])
def test_a_grid_is_the_values(kind):
    block, raw = BLOCKS[TYPES[kind][0]], random_blocks(kind, 300)
    integers, scales = block.grid(raw)
    assert integers.dtype == np.int8 and scales.dtype == np.uint16
    assert integers.min() >= -(2 ** (block.bits - 1)) and integers.max() < 2 ** (block.bits - 1)
    values = integers.reshape(300, -1, 32) * scales.view(np.float16).astype(np.float32)[:, :, None]
    assert (values.reshape(300, -1) == block.values(raw)).all()


def test_floats_are_themselves():
    values = np.array([[0.0, -1.5, 2.0**-20, 65504.0]], np.float32)
    raw = {0: values, 1: values.astype(np.float16), 30: (values.view(np.uint32) >> 16).astype(np.uint16)}
    for number, stored in raw.items():
        found = BLOCKS[number].values(stored.reshape(-1, 1).view(np.uint8))
        expected = values if number != 1 else stored.astype(np.float32)
        assert np.array_equal(found.ravel(), expected.ravel()) or number == 30
    assert BLOCKS[30].values(np.array([[0xC0, 0x3F]], np.uint8)) == 1.5


@pytest.mark.parametrize("kind", TYPES)
def test_values_are_those_of_the_gguf_package(kind):
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(kind, 2000)
    number, size, num_bytes, _ = TYPES[kind]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (size, num_bytes)
    found = BLOCKS[number].values(raw)
    if kind == "F32":
        expected = raw.view(np.float32)
    else:
        stored = raw.view(np.float16) if kind == "F16" else raw
        expected = gguf.dequantize(stored, gguf.GGMLQuantizationType(number)).reshape(found.shape)
    assert (found == expected).all()
