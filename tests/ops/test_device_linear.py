"""Linear layers on every device, and inputs and experts in fp8."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import from_bf16, from_e4m3, quantize_fp8_blocks, to_bf16, to_e4m3
from support.compare import assert_rows_close
from support.device_cases import CPU, moe_case, normal
from support.devices import EMULATED, EMULATED_FP8, needs_gpu
from support.tolerances import BF16_OPS, FP8_OPS

pytestmark = pytest.mark.device


# Odd shapes go through the plain kernel; multiples of 8 through CUTLASS on a GPU. 1 token, a prime, tile size plus one.
SHAPES = [(1, 1, 1), (3, 33, 65), (1, 128, 64), (17, 200, 192), (129, 136, 264)]


@pytest.mark.parametrize("tokens,out,width", SHAPES)
@pytest.mark.parametrize("format", ["f32", "bf16", "fp8_block"])
@pytest.mark.parametrize("f32_out", [False, True])
def test_linear(ops, tolerance, tokens, out, width, format, f32_out):
    x, weight, scales = normal(tokens, width), normal(out, width, seed=1), None
    if format == "bf16":
        weight = to_bf16(weight)
    elif format == "fp8_block":
        weight, scales = quantize_fp8_blocks(weight)
    found = ops.linear(x, weight, scales, f32_out)
    assert_rows_close(found, CPU.linear(x, weight, scales, f32_out), tolerance)


@pytest.mark.parametrize("format", ["f32", "bf16", "fp8_block", "bf16_x8", "int8_x8", "int4_x8", "int4_x8_f16"])
def test_first_rows_of_a_matrix(ops, format):
    """The head of draft tokens may have them only: the same products, also behind the last block of 128."""
    x, weight, scales, packed = normal(3, 256), normal(304, 256, seed=1), None, ""
    if format == "bf16":
        weight = to_bf16(weight)
    elif format == "fp8_block":
        weight, scales = quantize_fp8_blocks(weight)
    elif format != "f32":
        weight, packed = testing.pack_matrix(weight, format), format
    whole = ops.linear_packed(x, weight, packed, 304, True) if packed else ops.linear(x, weight, scales, True)
    for rows in (128, 256):
        found = ops.linear_first_rows(x, weight, scales, packed, 304, rows)
        assert np.array_equal(found, whole[:, :rows])


# Whole blocks of 128: there a device that multiplies fp8 takes the inputs as fp8 too.
FP8_DEVICES = [EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)]
FP8_SHAPES = [(1, 128, 128), (17, 256, 384), (130, 384, 256)]


def fp8_rows(x):
    """What is left of rows in e4m3 with a scale for every 128 values."""
    groups = x.reshape(len(x), -1, 128)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    scales = np.where(largest > 0, largest / np.float32(448), np.float32(1)).astype(np.float32)
    return (from_e4m3(to_e4m3(groups / scales)) * scales).reshape(x.shape)


@pytest.mark.parametrize("device", FP8_DEVICES)
@pytest.mark.parametrize("tokens,out,width", FP8_SHAPES)
def test_linear_in_fp8(device, tokens, out, width):
    ops = testing.DeviceOps(device)
    x = normal(tokens, width) * np.exp2(np.arange(width) // 128, dtype=np.float32)  # groups of other sizes
    weight, scales = quantize_fp8_blocks(normal(out, width, seed=1))
    found = ops.linear(x, weight, scales)
    assert_rows_close(found, CPU.linear(x, weight, scales), FP8_OPS)
    if device == EMULATED_FP8:
        assert_rows_close(found, CPU.linear(fp8_rows(x), weight, scales), BF16_OPS)
        assert not np.allclose(found, testing.DeviceOps(EMULATED).linear(x, weight, scales), rtol=1e-3)
    for count in (1, 16):
        assert np.array_equal(ops.linear(x[:count], weight, scales), found[:count])


@pytest.mark.parametrize("device", FP8_DEVICES)
def test_experts_in_fp8(device):
    ops = testing.DeviceOps(device)
    case = moe_case(40, 256, 128, 8, 4, 3)
    scales = []
    for e in range(8):
        for name in ("gate", "up", "down"):
            case[name][e], found = quantize_fp8_blocks(from_bf16(case[name][e]))
            scales.append(found)
    found, expected = ops.moe(**case, scales=scales), CPU.moe(**case, scales=scales)
    assert np.array_equal(found[0], expected[0])
    assert_rows_close(found[-1], expected[-1], 2 * FP8_OPS)  # two roundings one after the other
    alone = ops.moe(**{**case, "x": case["x"][:3]}, scales=scales)
    assert np.array_equal(alone[-1], found[-1][:3])


def test_scales_of_rows_lie_apart():
    for counts in ([1], [3, 0, 5], [0, 130, 1]):
        first, places = 0, set()
        for count in counts:
            places |= {
                testing.input_scale_at(first, count, row, group, 384)
                for row in range(first, first + count)
                for group in range(3)
            }
            first += count
        assert places == set(range(3 * sum(counts)))


@pytest.mark.parametrize("device", ["cpu", EMULATED, EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("rows,cols", [(1, 1), (130, 257), (256, 128)])
def test_quantized_matrices_are_the_same_everywhere(device, rows, cols):
    matrix = normal(rows, cols, scale=0.02)
    matrix[0, 0] = 3
    codes, scales = quantize_fp8_blocks(matrix)
    expected = from_e4m3(codes) * np.kron(scales, np.ones((128, 128), np.float32))[:rows, :cols]
    for stored in (matrix, to_bf16(matrix)):
        assert np.array_equal(testing.DeviceOps(device).quantized(stored).T, expected)


@pytest.mark.parametrize("heads,out,width", [(3, 9, 20), (4, 64, 32)])
def test_linear_per_head(ops, tolerance, heads, out, width):
    x, weight = normal(5, heads, width), to_bf16(normal(heads * out, width, seed=1))
    found, expected = ops.linear_per_head(x, weight), CPU.linear_per_head(x, weight)
    assert_rows_close(found, expected, tolerance)


@pytest.mark.parametrize("tokens,out,width", [(129, 33, 65), (129, 128, 64)])
def test_rows_do_not_depend_on_their_number(ops, tokens, out, width):
    x, weight = normal(tokens, width), to_bf16(normal(out, width, seed=1))
    whole = ops.linear(x, weight)
    for count in (1, 2, 16, 17, 64, 65):
        assert np.array_equal(ops.linear(x[:count], weight), whole[:count])
