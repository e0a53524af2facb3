"""fp8 weights whose inputs are not rounded (cuda/gemm/fp8_linear.h): generated tokens, and all on other devices."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import from_bf16, from_e4m3, quantize_fp8_blocks, to_bf16
from support.compare import assert_rows_close
from support.device_cases import CPU, moe_case, normal
from support.devices import EMULATED, EMULATED_FP8, EMULATED_REVERSED, needs_gpu
from support.tolerances import BF16_OPS, F32_ROW

pytestmark = pytest.mark.device

CODE_DEVICES = [EMULATED, EMULATED_REVERSED, EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)]
ROUNDING_DEVICES = [EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)]
EDGES = (1, 8, 9, 16, 17, 32, 33)  # a block has up to 32 tokens


def launched(device, run):
    """The result of run(), and how many kernels over simt.h it launched: None where none counts."""
    before = testing.emulated_thread_kernels()
    result = run()
    return result, testing.emulated_thread_kernels() - before if device != "cuda" else None


def generating(device, count):
    """The device's ops, of whose rows the first `count` are generated tokens."""
    ops = testing.DeviceOps(device)
    ops.set_generated(count)
    return ops


def values_of(codes, scales):
    return from_e4m3(codes) * scales.repeat(128, 0).repeat(128, 1)[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize("device", CODE_DEVICES)
@pytest.mark.parametrize("out,width", [(16, 128), (144, 640), (256, 2688)])
def test_any_number_of_generated_tokens_has_the_same_bits(device, out, width):
    """Scales of blocks that differ, a last block of 16 rows, and K of more units than the rings hold."""
    ops, x = generating(device, 70), normal(70, width)
    matrix = normal(out, width, seed=1) * np.exp2(np.arange(width) // 128 % 5, dtype=np.float32)
    codes, scales = quantize_fp8_blocks(matrix)
    whole, launches = launched(device, lambda: ops.linear(x, codes, scales, True))
    assert launches in (1, None)
    assert_rows_close(whole, x.astype(np.float64) @ values_of(codes, scales).astype(np.float64).T, F32_ROW * 4)
    for count in EDGES:
        assert np.array_equal(ops.linear(x[:count], codes, scales, True), whole[:count]), count
    rounded = ops.linear(x, codes, scales)
    assert np.array_equal(rounded, from_bf16(to_bf16(whole)))
    assert np.array_equal(ops.linear(x[:9], codes, scales), rounded[:9])


@pytest.mark.parametrize("device", CODE_DEVICES)
def test_pairs_and_gates_have_the_bits_of_their_parts(device):
    ops, x = generating(device, 33), normal(33, 256)
    (a, a_scales), (b, b_scales), (c, c_scales) = (
        quantize_fp8_blocks(normal(rows, 256, seed=seed, scale=0.3)) for seed, rows in enumerate((256, 384, 256))
    )
    for count in (1, 17, 32, 33):
        pair, launches = launched(
            device, lambda count=count: ops.linear_pair(x[:count], a, b, True, a_scales, b_scales)
        )
        assert launches in (1 if count <= 32 else 2, None)
        parts = ops.linear_pair(x[:count], a, b, False, a_scales, b_scales)
        assert all(np.array_equal(*two) for two in zip(pair, parts, strict=True))
        gated, launches = launched(
            device, lambda count=count: ops.linear_silu_mul(x[:count], a, c, True, a_scales, c_scales)
        )
        assert launches in (1 if count <= 32 else 2, None)
        assert np.array_equal(gated, ops.linear_silu_mul(x[:count], a, c, False, a_scales, c_scales))
    assert_rows_close(gated, CPU.linear_silu_mul(x, a, c, True, a_scales, c_scales), 2 * BF16_OPS)


@pytest.mark.parametrize("device", ROUNDING_DEVICES)
def test_each_kind_of_token_has_its_arithmetic(device):
    """Beside each other, both have the bits that each has alone. Layers in f32 never round."""
    x = normal(37, 256)
    codes, scales = quantize_fp8_blocks(normal(256, 256, seed=1))
    generated = generating(device, 37).linear(x, codes, scales)
    prompt = generating(device, 0).linear(x, codes, scales)
    assert not np.array_equal(generated, prompt)
    for count in (1, 36):
        found = generating(device, count).linear(x, codes, scales)
        assert np.array_equal(found, np.concatenate([generated[:count], prompt[count:]]))
        ops = generating(device, count)
        for pair in (ops.linear_pair(x, codes, codes, True, scales, scales),):
            assert all(np.array_equal(part, found) for part in pair)
        assert np.array_equal(
            ops.linear_silu_mul(x, codes, codes, True, scales, scales),
            ops.linear_silu_mul(x, codes, codes, False, scales, scales),
        )
    in_f32 = [generating(device, count).linear(x, codes, scales, True) for count in (0, 37)]
    assert np.array_equal(*in_f32) and np.array_equal(from_bf16(to_bf16(in_f32[0])), generated)
    if device == EMULATED_FP8:
        assert np.array_equal(generated, testing.DeviceOps(EMULATED).linear(x, codes, scales))


def fp8_moe_case(tokens, width=128):
    case = moe_case(tokens, 256, width, 8, 4, 3)
    scales = []
    for e in range(8):
        for name in ("gate", "up", "down"):
            case[name][e], found = quantize_fp8_blocks(from_bf16(case[name][e]))
            scales.append(found)
    return {**case, "scales": scales}


def part_of(case, begin, end):
    return {**case, "x": case["x"][begin:end]}


@pytest.mark.parametrize("device", CODE_DEVICES)
def test_experts_of_generated_tokens(device):
    """Of one expert 33 rows and more: in slices. Any number of tokens has the same bits."""
    case = fp8_moe_case(140)
    ops = generating(device, 140)
    whole, launches = launched(device, lambda: ops.moe(**case))
    assert launches in (2, None)
    assert np.diff(whole[3]).max() > 32
    assert_rows_close(whole[-1], CPU.moe(**case)[-1], 2 * BF16_OPS)
    for count in (1, 31, 32, 33, 64, 65):
        found, launches = launched(device, lambda count=count: ops.moe(**part_of(case, 0, count)))
        assert launches in (2, None)
        assert np.array_equal(found[-1], whole[-1][:count]), count


@pytest.mark.parametrize("device", ROUNDING_DEVICES)
@pytest.mark.parametrize("width", [128, 120])
def test_experts_of_both_kinds_of_tokens(device, width):
    """Each token has the bits that it has among its like. Where blocks are not whole, all have one arithmetic."""
    case = fp8_moe_case(50, width)
    generated, prompt = (generating(device, count).moe(**case)[-1] for count in (50, 0))
    assert np.array_equal(generated, prompt) == (width != 128)
    for count in (1, 20, 49):
        found = generating(device, count).moe(**case)[-1]
        assert np.array_equal(found, np.concatenate([generated[:count], prompt[count:]])), count
        assert np.array_equal(generating(device, 0).moe(**part_of(case, count, 50))[-1], prompt[count:])


@pytest.mark.parametrize("device", CODE_DEVICES)
@pytest.mark.parametrize("generated", [0, 3])
def test_a_code_that_is_no_number_shows(device, generated):
    codes, scales = quantize_fp8_blocks(normal(256, 256, seed=1))
    codes[5, 200] = 0x7F
    found = generating(device, generated).linear(normal(3, 256), codes, scales)
    assert np.isnan(found[:, 5]).all() and np.isfinite(found[:, 128:]).all()


def test_what_the_kernel_does_not_fit():
    ops = testing.DeviceOps(EMULATED)

    def run():
        for out, width in ((40, 128), (48, 136), (16, 128 * 129)):
            ops.linear(normal(3, width), *quantize_fp8_blocks(normal(out, width, seed=1)))
        testing.DeviceOps("cuda-emulated-f32").linear(normal(3, 128), *quantize_fp8_blocks(normal(48, 128, seed=1)))

    assert launched(EMULATED, run)[1] == 0
