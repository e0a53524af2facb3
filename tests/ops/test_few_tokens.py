"""Kernels for few tokens (cuda/gemm/few_tokens.h): the bits of many tokens, and the CPU's results."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import to_bf16
from support.compare import assert_rows_close
from support.device_cases import CPU, moe_case, normal
from support.devices import EMULATED, EMULATED_F32, EMULATED_REVERSED, needs_gpu
from support.tolerances import BF16_OPS

pytestmark = pytest.mark.device

FEW_TOKEN_DEVICES = [EMULATED, EMULATED_REVERSED, pytest.param("cuda", marks=needs_gpu)]
EDGES = (1, 16, 17, 63, 64, 65)  # kernels over mma.sync serve up to 64


def launched(device, run):
    """The result of run(), and how many kernels over mma.sync and its like it launched: None where none counts."""
    before = testing.emulated_thread_kernels()
    result = run()
    return result, testing.emulated_thread_kernels() - before if device != "cuda" else None


@pytest.mark.parametrize("device", FEW_TOKEN_DEVICES)
@pytest.mark.parametrize("f32_out", [False, True])
def test_few_and_many_tokens_have_the_same_bits(device, f32_out):
    """Two kernels, one chain of products for each result."""
    ops, x, weight = testing.DeviceOps(device), normal(65, 384), to_bf16(normal(48, 384, seed=1))
    whole, launches = launched(device, lambda: ops.linear(x, weight, None, f32_out))
    assert launches in (0, None)
    assert_rows_close(whole, CPU.linear(x, weight, None, f32_out), BF16_OPS)
    for count in EDGES[:-1]:
        found, launches = launched(device, lambda count=count: ops.linear(x[:count], weight, None, f32_out))
        assert launches in (1, None) and np.array_equal(found, whole[:count]), count


@pytest.mark.parametrize("device", FEW_TOKEN_DEVICES)
def test_pairs_and_gates_have_the_bits_of_their_parts(device):
    ops, x = testing.DeviceOps(device), normal(65, 128)
    a, b, other = (to_bf16(normal(rows, 128, seed=seed, scale=0.3)) for seed, rows in enumerate((32, 48, 32)))
    for count in (1, 17, 64, 65):
        pair, launches = launched(device, lambda count=count: ops.linear_pair(x[:count], a, b))
        assert launches in (int(count <= 64), None)
        for found, expected in zip(pair, ops.linear_pair(x[:count], a, b, fused=False), strict=True):
            assert np.array_equal(found, expected)
        gated, launches = launched(device, lambda count=count: ops.linear_silu_mul(x[:count], a, other))
        assert launches in (int(count <= 64), None)
        assert np.array_equal(gated, ops.linear_silu_mul(x[:count], a, other, fused=False))
    assert_rows_close(gated, CPU.linear_silu_mul(x, a, other), 2 * BF16_OPS)


def test_what_the_kernels_for_few_tokens_do_not_fit():
    ops, x = testing.DeviceOps(EMULATED), normal(3, 128)
    rows = to_bf16(normal(40, 128, seed=1)), to_bf16(normal(48, 136, seed=1)), normal(48, 128, seed=1)

    def run():
        ops.linear(x, rows[0])  # half a block
        ops.linear(normal(3, 136), rows[1])  # K is no multiple of 128
        ops.linear(x, rows[2])  # f32
        ops.linear_pair(x, to_bf16(rows[2]), rows[0], fused=True)  # the first of the two alone
        ops.linear_per_head(normal(3, 2, 128), to_bf16(normal(32, 128)))
        testing.DeviceOps(EMULATED_F32).linear(x, to_bf16(rows[2]))

    assert launched(EMULATED, run)[1] == 1


def few_token_moe_case(tokens):
    """384 outputs and 12 picks, as LongCat-Flash-Lite has. All tokens pick expert 0, none picks 1, the first 16 pick 2,
    the first 17 pick 3, and one picks 4."""
    case = moe_case(tokens, 128, 128, routed=20, identity=364, topk=12)
    case["classifier"] *= 0.05
    case["bias"] *= 0.1
    case["bias"][:2] = 1, -1
    for expert, chosen in ((2, range(16)), (3, range(17)), (4, [0])):
        case["x"][:, expert] = 0
        case["x"][chosen, expert] = 1
        case["classifier"][:, expert] = 0
        case["classifier"][expert, :] = 0
        case["classifier"][expert, expert] = 8.0078125 + 2**-12  # more bits than bf16 has
    return case


MOE_NAMES = ("picks", "weights", "identity", "offsets", "tokens", "rows", "out")


@pytest.mark.parametrize("device", FEW_TOKEN_DEVICES)
def test_router_and_experts_of_few_tokens(device):
    ops, case = testing.DeviceOps(device), few_token_moe_case(65)
    whole, launches = launched(device, lambda: ops.moe(**case))
    assert launches in (1, None)  # the router's scores
    whole, expected = (dict(zip(MOE_NAMES, result, strict=True)) for result in (whole, CPU.moe(**case)))
    assert np.diff(expected["offsets"])[:5].tolist() == [65, 0, 16, 17, 1]
    for name in ("picks", "offsets", "rows"):
        assert np.array_equal(whole[name], expected[name]), name
    assert_rows_close(whole["weights"], expected["weights"], 1e-4)  # 17 bits of each of the router's weights
    assert_rows_close(whole["out"], expected["out"], 2 * BF16_OPS)
    for count in EDGES[:-1]:
        few = {**case, "x": case["x"][:count]}
        found, launches = launched(device, lambda few=few: ops.moe(**few))
        found, expected = (dict(zip(MOE_NAMES, result, strict=True)) for result in (found, CPU.moe(**few)))
        assert launches in (4, None)  # scores, picks, and two of the experts
        for name in ("picks", "weights", "identity", "out"):
            assert np.array_equal(found[name], whole[name][:count]), (count, name)
        assert np.array_equal(found["offsets"], expected["offsets"]), count
        assert np.array_equal(found["rows"], expected["rows"]), count
        used = expected["offsets"][-1]
        assert np.array_equal(found["tokens"][:used], expected["tokens"][:used]), count


@pytest.mark.parametrize("device", [*FEW_TOKEN_DEVICES, EMULATED_F32])
def test_few_tokens_of_a_share_of_the_experts(device):
    """Padding, and experts 3 to 11 alone."""
    case, ops = few_token_moe_case(18), testing.DeviceOps(device)
    share = case | {name: case[name][3:12] for name in ("gate", "up", "down")}
    options = {"first_expert": 3, "n_routed_experts": 20, "num_real_tokens": 17}
    found, expected = (dict(zip(MOE_NAMES, o.moe(**share, **options), strict=True)) for o in (ops, CPU))
    for name in ("picks", "offsets", "rows"):
        assert np.array_equal(found[name], expected[name]), name
    assert_rows_close(found["out"][:17], expected["out"][:17], 2 * BF16_OPS)
    assert not found["out"][17:].any() and not found["weights"][17:].any()


@pytest.mark.parametrize("device", FEW_TOKEN_DEVICES)
def test_experts_of_few_tokens_behind_any_router(device):
    """Other numbers of outputs and picks: the list of experts is made of their offsets."""
    case, ops = moe_case(65, 384, 128, 8, 0, 3), testing.DeviceOps(device)
    whole, launches = launched(device, lambda: ops.moe(**case))
    assert launches in (0, None)
    for count in (1, 17, 64):
        found, launches = launched(device, lambda count=count: ops.moe(**{**case, "x": case["x"][:count]}))
        assert launches in (2, None)
        assert np.array_equal(found[0], whole[0][:count]) and np.array_equal(found[-1], whole[-1][:count])


@pytest.mark.parametrize("device", FEW_TOKEN_DEVICES)
def test_router_of_few_tokens_survives_nan(device):
    case = few_token_moe_case(17)
    case["x"] = case["x"][:2]
    case["x"][0] = np.nan
    picks = testing.DeviceOps(device).moe(**case)[0]
    assert len(set(picks[0].tolist())) == 12 and picks[0].min() >= 0 and picks[0].max() < 384
    assert np.array_equal(picks[1], CPU.moe(**case)[0][1])
