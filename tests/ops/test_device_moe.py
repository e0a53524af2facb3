"""The router and the experts on every device."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.compare import assert_rows_close
from support.device_cases import CPU, moe_case
from support.tolerances import F32_TRANSCENDENTAL

pytestmark = pytest.mark.device


@pytest.mark.parametrize(
    "tokens,hidden,width,routed,identity,topk",
    [(1, 20, 9, 5, 3, 4), (17, 20, 9, 5, 3, 4), (40, 64, 32, 8, 4, 3), (3, 16, 8, 40, 0, 2)],
)
def test_moe(ops, tolerance, tokens, hidden, width, routed, identity, topk):
    case = moe_case(tokens, hidden, width, routed, identity, topk)
    found, expected = ops.moe(**case), CPU.moe(**case)
    names = ("picks", "weights", "identity", "offsets", "tokens", "rows", "out")
    found, expected = (dict(zip(names, r, strict=True)) for r in (found, expected))
    rows = expected["offsets"][-1]
    for name in ("picks", "offsets", "rows"):
        assert np.array_equal(found[name], expected[name]), name
    assert np.array_equal(found["tokens"][:rows], expected["tokens"][:rows])
    assert_rows_close(found["weights"], expected["weights"], F32_TRANSCENDENTAL)
    assert np.allclose(found["identity"], expected["identity"], rtol=F32_TRANSCENDENTAL, atol=1e-7)
    assert_rows_close(found["out"], expected["out"], tolerance)


def test_experts_of_shares_add_up(ops, tolerance):
    """Three ranks have experts 0-1, 2-6 and 7: the same picks, each its own rows."""
    case = moe_case(33, 24, 16, routed=8, identity=4, topk=5)
    expected = CPU.moe(**case)
    total = np.zeros_like(expected[6])
    for first, last in [(0, 2), (2, 7), (7, 8)]:
        share = case | {name: case[name][first:last] for name in ("gate", "up", "down")}
        picks, _, identity, offsets, tokens, rows, out = ops.moe(**share, first_expert=first, n_routed_experts=8)
        assert np.array_equal(picks, expected[0])
        assert np.allclose(identity, expected[2], rtol=F32_TRANSCENDENTAL, atol=1e-7)
        assert np.array_equal(offsets, expected[3][first : last + 1] - expected[3][first])
        begin, end = expected[3][first], expected[3][last]
        assert np.array_equal(tokens[: end - begin], expected[4][begin:end])
        here = (picks >= first) & (picks < last)
        assert np.array_equal(rows, np.where(here, expected[5] - begin, -1))
        total += out
    assert_rows_close(total, expected[6], 3 * tolerance)


def test_padded_rows_pick_nothing(ops):
    case = moe_case(6, 20, 9, 5, 3, 4)
    picks, weights, identity, offsets, _, rows, out = ops.moe(**case, num_real_tokens=2)
    assert (picks[2:] == 5).all() and (weights[2:] == 0).all() and (identity[2:] == 0).all()
    assert (rows[2:] == -1).all() and (out[2:] == 0).all()
    alone = ops.moe(**{**case, "x": case["x"][:2]})
    assert offsets[-1] == alone[3][-1] and np.array_equal(out[:2], alone[-1])


@pytest.mark.parametrize("hidden", [776, 20])  # read by 16 bytes, and not
def test_picks_do_not_depend_on_the_number_of_tokens(ops, hidden):
    """One token is routed by other blocks than many: the same bits."""
    case = moe_case(20, hidden, 8, 37, 8, 4)
    case["x"] *= 0.0625  # exact in bf16
    weights = ops.moe(**case)[1]
    for count in (1, 8, 9):
        assert np.array_equal(ops.moe(**{**case, "x": case["x"][:count]})[1], weights[:count])
    expected = CPU.moe(**case)
    assert_rows_close(weights, expected[1], F32_TRANSCENDENTAL)


def test_router_ties_go_to_the_lowest_id(ops):
    case = moe_case(2, 16, 8, 5, 3, 3)
    case["classifier"][:] = 0
    case["bias"][:] = 0
    assert ops.moe(**case)[0].tolist() == [[0, 1, 2]] * 2


def test_router_survives_nan(ops):
    case = moe_case(2, 16, 8, 5, 3, 3)
    case["x"][0] = np.nan
    picks = ops.moe(**case)[0]
    assert all(len(set(row)) == 3 and min(row) >= 0 and max(row) < 8 for row in picks.tolist())
    assert np.array_equal(picks[1], CPU.moe(**case)[0][1])


def test_expert_of_row():
    offsets = [0, 0, 3, 3, 3, 7, 9, 9]
    assert [testing.expert_of_row(offsets, row) for row in range(9)] == [1, 1, 1, 4, 4, 4, 4, 5, 5]
