"""Sparse attention's operations on the CPU: index scores, the rule of selection, and attention to a selection."""

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing

from reference.sparse import choose
from support.tolerances import F32_TRANSCENDENTAL

# Worked examples of the rule: position, topk, first and last positions, scores of the visible positions, the selection.
RULE = {
    "fewer than topk: all": (3, 6, 1, 2, [5, -1, 0, 2], [0, 1, 2, 3]),
    "exactly topk: all": (5, 6, 1, 2, [5, -1, 0, 2, 9, 1], [0, 1, 2, 3, 4, 5]),
    "one over: the lowest free one goes": (6, 6, 1, 2, [-9, 3, -1, 0, 2, -8, -7], [0, 1, 3, 4, 5, 6]),
    "first and last are inside topk": (9, 5, 1, 2, [-9, 3, 4, 5, 6, 7, 8, 9, -8, -7], [0, 6, 7, 8, 9]),
    "first and last fill topk": (7, 4, 2, 2, [1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 6, 7]),
    "negative scores lose to zero": (7, 5, 1, 1, [0, -1, 0, -3, 5, -2, 0, 0], [0, 2, 4, 6, 7]),
    "all free negative": (7, 5, 1, 2, [9, -1, -2, -3, -4, -5, 9, 9], [0, 1, 2, 6, 7]),
    "tie: lower position": (7, 5, 1, 1, [0, 1, 2, 1, 1, 2, 1, 0], [0, 1, 2, 5, 7]),
    "no first tokens": (5, 4, 0, 2, [1, 4, 2, 3, 0, 0], [1, 3, 4, 5]),
    "no last tokens": (5, 4, 1, 0, [1, 4, 2, 3, 0, 0], [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", RULE)
def test_rule(name):
    """Two index heads with weights 1 and -1 make any score of a key (s, -s)."""
    p, topk, init, local, scores, expected = RULE[name]
    assert choose(np.array(scores), topk, init, local) == expected
    keys = np.array([[s, -s] for s in scores], np.float32)
    q, weights = np.array([[[1, 0], [0, 1]]], np.float32), np.array([[1, -1]], np.float32)
    selected, found = testing.Ops().select_positions(keys, q, weights, topk, init, local, 1.0)
    assert found[0].tolist() == scores
    assert selected[0].tolist() == (expected if p >= topk else [-1] * topk)


def random_case(n, num_tokens, heads, dim, seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((n, dim)).astype(np.float32)
    q = rng.standard_normal((num_tokens, heads, dim)).astype(np.float32)
    return keys, q, rng.standard_normal((num_tokens, heads)).astype(np.float32)


def scores_of(keys, q, weights, scale):
    """[T, n] float64."""
    products = np.maximum(np.einsum("thd,sd->ths", q.astype(np.float64), keys.astype(np.float64)), 0)
    return np.einsum("th,ths->ts", weights.astype(np.float64), products) * scale


@pytest.mark.parametrize("stored", ["f32", "bf16"])
@pytest.mark.parametrize("heads, dim", [(16, 128), (4, 16), (3, 10), (1, 2), (17, 130)])
def test_scores(heads, dim, stored):
    keys, q, weights = random_case(150, 9, heads, dim)
    if stored == "bf16":
        keys = (keys.view(np.uint32) & 0xFFFF0000).view(np.float32)  # exact in bf16
    _, found = testing.Ops().select_positions(keys, q, weights, 64, 2, 8, 0.3, stored)
    expected = scores_of(keys, q, weights, 0.3)
    assert np.abs(found - expected).max() <= 5 * F32_TRANSCENDENTAL * np.abs(expected).max()


@pytest.mark.parametrize("heads, dim", [(16, 128), (4, 16), (3, 9), (1, 2), (17, 130)])
def test_scores_of_rounded_queries(heads, dim):
    """Under dtype="bf16" and with an instruction for it, queries of bf16 keys are rounded to bf16."""
    keys, q, weights = random_case(150, 9, heads, dim)
    keys = (keys.view(np.uint32) & 0xFFFF0000).view(np.float32)
    _, found = testing.Ops(1, "bf16").select_positions(keys, q, weights, 64, 2, 8, 0.3, "bf16")
    rounds = _core.cpu_isa() in ("avx512_bf16", "amx_bf16") and dim % 2 == 0
    bits = q.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    expected = scores_of(keys, rounded if rounds else q, weights, 0.3)
    assert np.abs(found - expected).max() <= 5 * F32_TRANSCENDENTAL * np.abs(expected).max()
    assert np.abs(found - scores_of(keys, q, weights, 0.3)).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("heads, dim", [(16, 128), (3, 9), (1, 2), (17, 130), (2, 1100)])
def test_scores_of_int8_keys(heads, dim):
    """Keys that 8 bits hold exactly: only the queries are rounded, to 16 bits."""
    keys, q, weights = random_case(150, 9, heads, dim)
    keys = np.clip(np.rint(50 * keys), -127, 127)
    keys[np.arange(150), np.arange(150) % dim] = 127
    keys *= 2.0 ** (np.arange(150) % 30 - 15)[:, None]
    keys = keys.astype(np.float32)
    selected, found = testing.Ops().select_positions(keys, q, weights, 64, 2, 8, 0.3, "int8")
    expected = scores_of(keys, q, weights, 0.3)
    size = np.abs(keys).max(axis=1) * np.abs(q).sum(axis=2).max()
    assert (np.abs(found - expected) / size).max() <= heads * 2e-5
    for t in range(9):
        assert selected[t].tolist() == choose(found[t, : 142 + t], 64, 2, 8)


def test_int8_keys_are_rounded_to_their_largest_value():
    keys, q, weights = random_case(150, 9, 16, 128)
    keys[3] = 0
    rule = (64, 2, 8, 0.3)
    _, found = testing.Ops().select_positions(keys, q, weights, *rule, "int8")
    scale = np.abs(keys).max(axis=1, keepdims=True) / 127
    rounded = np.rint(keys / np.where(scale > 0, scale, 1)) * scale
    expected, exact = scores_of(rounded, q, weights, 0.3), scores_of(keys, q, weights, 0.3)
    assert not found[:, 3].any()
    # A value in the middle between two levels may go to either.
    assert np.median(np.abs(found - expected)) <= 1e-4 * np.abs(expected).max()
    assert 1e-3 * np.abs(exact).max() < np.abs(found - exact).max() <= 2e-2 * np.abs(exact).max()


def test_int8_keys_that_are_not_finite_score_zero():
    """As such keys in other formats: a product that is no number is not above 0."""
    keys, q, weights = random_case(100, 1, 4, 16)
    keys[7, 3], keys[60, 0] = np.nan, np.inf
    _, found = testing.Ops().select_positions(keys, q, weights, 10, 1, 2, 1.0, "int8")
    assert found[0, 7] == found[0, 60] == 0 and np.isfinite(found).all()


# (positions, tokens, topk, first, last): inside a tile, over tiles, over pieces of several threads.
SHAPES = [
    (40, 40, 12, 2, 4),
    (200, 200, 64, 0, 5),
    (700, 19, 100, 16, 50),
    (9000, 3, 2048, 16, 1024),
    (9000, 1, 70, 1, 0),
    (50_000, 1, 2048, 16, 1024),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selection(shape):
    n, num_tokens, topk, init, local = shape
    keys, q, weights = random_case(n, num_tokens, 4, 16)
    selected, scores = testing.Ops().select_positions(keys, q, weights, topk, init, local, 1.0)
    for t in range(num_tokens):
        p = n - num_tokens + t
        expected = choose(scores[t, : p + 1], topk, init, local) if p >= topk else [-1] * topk
        assert selected[t].tolist() == expected, f"position {p}"


@pytest.mark.parametrize("stored", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_selection_depends_on_nothing_else(shape, stored):
    """Neither on the number of threads nor on the other tokens of the step."""
    n, num_tokens, topk, init, local = shape
    keys, q, weights = random_case(n, num_tokens, 4, 16, seed=1)
    rule, dtype = (topk, init, local, 1.0, stored), "f32" if stored == "f32" else "bf16"
    expected, scores = testing.Ops(1, dtype).select_positions(keys, q, weights, *rule)
    for threads in (2, 5):
        found, _ = testing.Ops(threads, dtype).select_positions(keys, q, weights, *rule)
        assert np.array_equal(found, expected)
    for t in range(0, num_tokens, 7):
        p = n - num_tokens + t
        alone = keys[: p + 1], q[t : t + 1], weights[t : t + 1]
        found, scores_alone = testing.Ops(2, dtype).select_positions(*alone, *rule)
        assert np.array_equal(found[0], expected[t])
        assert np.array_equal(scores_alone[0], scores[t, : p + 1])


@pytest.mark.parametrize("order", ["ascending", "descending", "waves", "equal"])
@pytest.mark.parametrize("topk, init, local", [(2048, 16, 1024), (300, 3, 20), (2, 0, 1)])
def test_selection_of_ordered_scores(order, topk, init, local):
    """The list of the best positions is replaced always, never, and now and then."""
    n = 20_000
    ramp = np.arange(n, dtype=np.float32)
    scores = {"ascending": ramp, "descending": -ramp, "waves": ramp % 97 - 40, "equal": 0 * ramp}[order]
    keys = np.stack([scores, -scores], axis=1)
    q, weights = np.array([[[1, 0], [0, 1]]], np.float32), np.array([[1, -1]], np.float32)
    for threads in (1, 3):
        selected, _ = testing.Ops(threads).select_positions(keys, q, weights, topk, init, local, 1.0)
        assert selected[0].tolist() == choose(scores, topk, init, local)


def test_ties_at_any_distance():
    """All scores are equal, or of two values. Where all products are negative, no weight makes the zero negative."""
    n, topk, init, local = 5000, 300, 3, 20
    q = np.ones((2, 3, 4), np.float32)
    for key, weight in [(-1.0, 1.0), (-1.0, -1.0), (1.0, 1.0)]:
        keys = np.full((n, 4), key, np.float32)
        keys[::7] *= 2
        weights = np.full((2, 3), weight, np.float32)
        for threads in (1, 3):
            selected, scores = testing.Ops(threads).select_positions(keys, q, weights, topk, init, local, 1.0)
            assert not np.signbit(scores[scores == 0]).any()
            for t in range(2):
                assert selected[t].tolist() == choose(scores[t, : n - 1 + t], topk, init, local)


def test_scores_that_are_not_numbers_come_last():
    n, topk = 100, 10
    keys = np.zeros((n, 2), np.float32)
    keys[:, 0] = np.arange(n)
    q, weights = np.ones((1, 1, 2), np.float32), np.ones((1, 1), np.float32)
    keys[50:, 0] = np.inf  # infinite scores are the best
    selected, _ = testing.Ops().select_positions(keys, q, weights, topk, 0, 1, 1.0)
    assert selected[0].tolist() == [*range(50, 59), 99]
    selected, _ = testing.Ops().select_positions(keys, q, np.full((1, 1), np.nan, np.float32), topk, 0, 1, 1.0)
    assert selected[0].tolist() == [*range(9), 99]


# --- attention to a selection ---------------------------------------------------------------------

HEADS, LATENT, ROPE, NOPE, VALUE = 3, 40, 8, 10, 12


def attention_case(n, seed=0):
    rng = np.random.default_rng(seed)

    def values(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return values(n, LATENT + ROPE), np.ones(LATENT, np.float32), values(n, HEADS, LATENT), values(n, HEADS, ROPE)


def random_selection(n, topk, seed=0):
    """[n, topk] ascending visible positions, the token's own among them; nonsense in rows of fewer positions."""
    rng = np.random.default_rng(seed)
    rows = np.full((n, topk), 2**30, np.int32)
    for p in range(topk, n):
        rows[p] = np.sort(np.append(rng.choice(p, topk - 1, replace=False), p))
    return rows


@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "fp8", "int8"])
@pytest.mark.parametrize("topk", [5, 64, 150])
def test_decode_attends_to_the_selection(topk, cache_dtype):
    n, scale = 200, 0.2
    kv_a, norm, q_latent, q_rope = attention_case(n)
    inv_freq = (0.1 ** np.arange(ROPE // 2)).astype(np.float32)
    rest = (kv_a, norm, 1e-5, q_latent, q_rope, inv_freq, scale, cache_dtype)
    dense, stored = testing.Ops().mla_decode(*rest)
    selected = random_selection(n, topk)
    found, _ = testing.Ops().mla_decode(*rest, selected)
    assert np.array_equal(found[:topk], dense[:topk])
    stored = stored.astype(np.float64)
    for p in range(topk, n):
        rows = stored[selected[p]]
        scores = q_latent[p].astype(np.float64) @ rows[:, :LATENT].T + q_rope[p].astype(np.float64) @ rows[:, LATENT:].T
        weights = np.exp(scale * (scores - scores.max(axis=1, keepdims=True)))
        expected = weights / weights.sum(axis=1, keepdims=True) @ rows[:, :LATENT]
        tolerance = 2e-2 if cache_dtype == "int8" else 1e-5
        assert np.abs(found[p] - expected).max() <= tolerance * np.abs(expected).max(), p
    for threads in (2, 3):
        assert np.array_equal(testing.Ops(threads).mla_decode(*rest, selected)[0], found)


@pytest.mark.parametrize("cache_dtype", ["f32", "bf16", "fp8", "int8"])
@pytest.mark.parametrize("topk", [5, 64, 150])
def test_prefill_attends_to_the_selection(topk, cache_dtype):
    """Tokens with few positions get the bits of dense attention; the others those of generated tokens."""
    n, scale = 200, 0.2
    rng = np.random.default_rng(4)
    kv_a, norm, *_ = attention_case(n)
    q = rng.standard_normal((n, HEADS, NOPE + ROPE)).astype(np.float32)
    k_up = rng.standard_normal((HEADS * LATENT, NOPE)).astype(np.float32)
    v_up = rng.standard_normal((HEADS * VALUE, LATENT)).astype(np.float32)
    inv_freq = (0.1 ** np.arange(ROPE // 2)).astype(np.float32)
    selected, ops = random_selection(n, topk), testing.Ops(2)
    dense, _ = ops.mla_prefill(kv_a, norm, 1e-5, q, k_up, v_up, inv_freq, scale, cache_dtype)
    found, _ = ops.mla_prefill(kv_a, norm, 1e-5, q, k_up, v_up, inv_freq, scale, cache_dtype, selected)
    assert np.array_equal(found[:topk], dense[:topk])
    q_latent = ops.linear_per_head(np.ascontiguousarray(q[..., :NOPE]), k_up)
    rotated = np.ascontiguousarray(q[..., NOPE:])
    latent_out, _ = ops.mla_decode(kv_a, norm, 1e-5, q_latent, rotated, inv_freq, scale, cache_dtype, selected)
    assert np.array_equal(found[topk:], ops.linear_per_head(latent_out, v_up)[topk:])
