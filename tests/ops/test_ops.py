"""Each CPU op against its formula in float64 (reference.ops)."""

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing

from reference import ops as ref
from support.checkpoints import from_bf16 as widen
from support.checkpoints import from_e4m3, quantize_fp8_blocks, to_bf16
from support.compare import assert_rows_close
from support.tolerances import (
    BF16_ATTENTION,
    BF16_STORE,
    F32_ROW,
    F32_TRANSCENDENTAL,
    FP8_STORE,
    INT8_ATTENTION,
    INT8_STORE,
)

# Rows: one token, a prime, more than a tile. Widths: below, at and beyond the vector lengths 16 and 64.
SHAPES = [(1, 1, 1), (1, 7, 64), (3, 16, 63), (13, 33, 65), (2, 130, 257), (5, 3, 1000), (131, 30, 1100)]


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda n: f"{n} threads")
def ops(request):
    return testing.Ops(request.param)


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_pool_visits_each_item_once(threads):
    for count, grain in [(0, 1), (1, 1), (3, 1), (7, 2), (64, 64), (100, 7), (1000, 1)]:
        assert testing.pool_visits(threads, count, grain, times=20) == [20] * count
    # A range that throws ends there; the other ranges run.
    found = testing.pool_visits(threads, 10, 2, times=20, failing=4)
    assert found == ([20] * 5 + [0] * 5 if threads == 1 else [20] * 5 + [0] + [20] * 4)


@pytest.mark.parametrize("tokens,out,width", SHAPES)
@pytest.mark.parametrize("format", ["f32", "bf16", "fp8_block"])
def test_linear(ops, tokens, out, width, format):
    x, weight = normal(tokens, width), normal(out, width, seed=1)
    scales = None
    if format == "f32":
        stored, exact = weight, weight
    elif format == "bf16":
        stored = to_bf16(weight)
        exact = widen(stored)
    else:
        stored, scales = quantize_fp8_blocks(weight)
        exact = from_e4m3(stored) * scales.repeat(128, 0).repeat(128, 1)[:out, :width]
    found = ops.linear(x, stored, scales)
    bound = np.abs(x).astype(np.float64) @ np.abs(exact).astype(np.float64).T
    assert np.all(np.abs(found - x.astype(np.float64) @ exact.T.astype(np.float64)) <= F32_ROW * bound + 1e-30)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("out", [9, 16])
def test_linear_per_head(ops, dtype, out):
    """bf16 is packed in groups of 8 rows, in which a head may begin anywhere."""
    tokens, heads, width = 5, 3, 21
    x, weight = normal(tokens, heads, width), normal(heads * out, width, seed=1)
    stored = weight if dtype == "f32" else widen(to_bf16(weight))
    expected = np.einsum("thk,hok->tho", x.astype(np.float64), stored.reshape(heads, out, width))
    matrix = weight if dtype == "f32" else to_bf16(weight)
    found = ops.linear_per_head(x, matrix)
    assert_rows_close(found, expected, F32_ROW)
    alone = np.concatenate([ops.linear_per_head(x[t : t + 1], matrix) for t in range(tokens)])
    assert np.array_equal(found, alone)


@pytest.mark.parametrize("tokens,dim", [(1, 1), (7, 96), (4, 513)])
def test_rms_norm(ops, tokens, dim):
    x, weight = normal(tokens, dim, scale=3), normal(dim, seed=1)
    assert_rows_close(ops.rms_norm(x, weight, 1e-5), ref.rms_norm(x, weight, 1e-5), F32_ROW)


def test_rms_norm_of_zeros_is_zero(ops):
    assert np.array_equal(ops.rms_norm(np.zeros((1, 8), np.float32), np.ones(8, np.float32), 1e-5), np.zeros((1, 8)))


def test_add_rms_norm(ops):
    residual, x, weight = normal(3, 70), normal(3, 70, seed=1), normal(70, seed=2)
    total, out = ops.add_rms_norm(residual, x, weight, 1e-6)
    assert np.array_equal(total, residual + x)
    assert_rows_close(out, ref.rms_norm(total, weight, 1e-6), F32_ROW)


def test_silu_mul(ops):
    gate, up = normal(4, 33, scale=5), normal(4, 33, seed=1)
    gate[0, :3] = [-100, 0, 100]
    assert_rows_close(ops.silu_mul(gate, up), ref.silu_mul(gate, up), F32_TRANSCENDENTAL)


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_rope(ops, factor):
    positions = np.array([0, 1, 63, 64, 5000], np.int32)
    x = normal(len(positions), 3, 8)
    inv_freq = (10000.0 ** (-np.arange(0, 8, 2) / 8)).astype(np.float32)
    angles = (positions[:, None].astype(np.float32) * inv_freq).astype(np.float64)  # rounded to f32, as the op does
    expected = np.empty(x.shape)
    cos, sin = (np.cos(angles) * factor)[:, None], (np.sin(angles) * factor)[:, None]
    expected[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    expected[..., 1::2] = x[..., 1::2] * cos + x[..., 0::2] * sin
    assert_rows_close(ops.rope(x, positions, inv_freq, factor), expected, F32_TRANSCENDENTAL)


STORED = {"f32": F32_TRANSCENDENTAL, "bf16": BF16_STORE, "fp8": FP8_STORE, "int8": INT8_STORE}


def causal_attention(q, k, v, scale):
    """q [T, heads, d], k [T, heads, d], v [T, heads, n] in float64."""
    scores = np.einsum("thk,shk->hts", q.astype(np.float64), k) * scale
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    return np.einsum("hts,shk->thk", ref.softmax(scores), v)


def latents_case(tokens, latent, rope):
    kv_a, weight = normal(tokens, latent + rope), normal(latent, seed=1)
    inv_freq = (10.0 ** -np.arange(rope // 2)).astype(np.float32)
    c = ref.rms_norm(kv_a[:, :latent], weight, 1e-6)
    key = ref.rope(kv_a[:, None, latent:], np.arange(tokens), inv_freq.astype(np.float64))[:, 0]
    return kv_a, weight, inv_freq, np.concatenate([c, key], axis=1)


@pytest.mark.parametrize("cache", STORED)
@pytest.mark.parametrize("tokens", [1, 65, 300])
@pytest.mark.parametrize("latent", [24, 130])
def test_mla_decode_attends_to_what_is_stored(ops, cache, tokens, latent):
    heads, rope = 11, 6
    kv_a, weight, inv_freq, exact = latents_case(tokens, latent, rope)
    q_latent, q_rope = normal(tokens, heads, latent, seed=2), normal(tokens, heads, rope, seed=3)
    out, stored = ops.mla_decode(kv_a, weight, 1e-6, q_latent, q_rope, inv_freq, 0.3, cache)
    assert_rows_close(stored, exact, STORED[cache])
    keys = np.repeat(stored.astype(np.float64)[:, None], heads, axis=1)
    expected = causal_attention(np.concatenate([q_latent, q_rope], -1), keys, keys[..., :latent], 0.3)
    assert_rows_close(out, expected, INT8_ATTENTION if cache == "int8" else F32_TRANSCENDENTAL)


@pytest.mark.parametrize("cache", STORED)
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("nope, v", [(16, 32), (7, 10)])
def test_mla_prefill_materialises_what_is_stored(ops, cache, tokens, nope, v):
    heads, latent, rope = 3, 24, 6
    kv_a, weight, inv_freq, exact = latents_case(tokens, latent, rope)
    q = normal(tokens, heads, nope + rope, seed=2)
    k_up, v_up = normal(heads * latent, nope, seed=4, scale=0.3), normal(heads * v, latent, seed=5, scale=0.3)
    out, stored = ops.mla_prefill(kv_a, weight, 1e-6, q, k_up, v_up, inv_freq, 0.3, cache)
    assert_rows_close(stored, exact, STORED[cache])
    stored = stored.astype(np.float64)
    k_nope = np.einsum("sl,hld->shd", stored[:, :latent], k_up.reshape(heads, latent, nope))
    k_rope = np.repeat(stored[:, None, latent:], heads, axis=1)
    values = np.einsum("sl,hvl->shv", stored[:, :latent], v_up.reshape(heads, v, latent))
    expected = causal_attention(q, np.concatenate([k_nope, k_rope], -1), values, 0.3)
    assert_rows_close(out, expected, F32_TRANSCENDENTAL)


@pytest.mark.parametrize("cache", STORED)
def test_absorbed_and_materialised_attention_agree(ops, cache):
    tokens, heads, latent, rope, nope, v = 150, 2, 32, 4, 8, 12
    kv_a, weight, inv_freq, _ = latents_case(tokens, latent, rope)
    q = normal(tokens, heads, nope + rope, seed=2)
    k_up, v_up = normal(heads * latent, nope, seed=4, scale=0.3), normal(heads * v, latent, seed=5, scale=0.3)
    materialised, _ = ops.mla_prefill(kv_a, weight, 1e-6, q, k_up, v_up, inv_freq, 0.3, cache)
    q_latent = ops.linear_per_head(np.ascontiguousarray(q[..., :nope]), k_up)
    q_rope = np.ascontiguousarray(q[..., nope:])
    latent_out, _ = ops.mla_decode(kv_a, weight, 1e-6, q_latent, q_rope, inv_freq, 0.3, cache)
    tolerance = INT8_ATTENTION if cache == "int8" else F32_TRANSCENDENTAL
    assert_rows_close(ops.linear_per_head(latent_out, v_up), materialised, tolerance)


MULTIPLIES_BF16 = _core.cpu_isa() in ("avx512_bf16", "amx_bf16")


def rounded(x):
    return widen(to_bf16(x.astype(np.float32))).astype(np.float64)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 300])
@pytest.mark.parametrize("latent, nope, v", [(24, 16, 32), (130, 6, 10), (25, 16, 32), (24, 7, 32)])
def test_attention_rounds_to_bf16_where_the_processor_multiplies_it(threads, tokens, latent, nope, v):
    """Queries, keys and values; and the softmax's weights, which the tolerance has room for. Odd sizes stay f32."""
    heads, rope = 3, 6
    kv_a, weight, inv_freq, _ = latents_case(tokens, latent, rope)
    q_latent, q_rope = normal(tokens, heads, latent, seed=2), normal(tokens, heads, rope, seed=3)
    q = normal(tokens, heads, nope + rope, seed=2)
    k_up = to_bf16(normal(heads * latent, nope, seed=4, scale=0.3))
    v_up = to_bf16(normal(heads * v, latent, seed=5, scale=0.3))

    def attend(dtype):
        ops = testing.Ops(threads, dtype)
        decoded, stored = ops.mla_decode(kv_a, weight, 1e-6, q_latent, q_rope, inv_freq, 0.3, "bf16")
        return decoded, ops.mla_prefill(kv_a, weight, 1e-6, q, k_up, v_up, inv_freq, 0.3, "bf16")[0], stored

    decoded, materialised, stored = attend("bf16")
    decoded_f32, materialised_f32, _ = attend("f32")
    stored = stored.astype(np.float64)
    keys = np.repeat(stored[:, None], heads, axis=1)
    if MULTIPLIES_BF16 and latent % 2 == 0:
        queries = rounded(0.3 * np.concatenate([q_latent, q_rope], -1))
        assert_rows_close(decoded, causal_attention(queries, keys, keys[..., :latent], 1), BF16_ATTENTION)
        assert tokens == 1 or not np.array_equal(decoded, decoded_f32)
    else:
        assert np.array_equal(decoded, decoded_f32)
    if MULTIPLIES_BF16 and latent % 2 == nope % 2 == 0:
        k_nope = np.einsum("sl,hld->shd", stored[:, :latent], widen(k_up).reshape(heads, latent, nope))
        values = np.einsum("sl,hvl->shv", stored[:, :latent], widen(v_up).reshape(heads, v, latent))
        keys = np.concatenate([rounded(k_nope), keys[..., latent:]], -1)
        expected = causal_attention(rounded(0.3 * q), keys, rounded(values), 1)
        assert_rows_close(materialised, expected, BF16_ATTENTION)
        assert not np.array_equal(materialised, materialised_f32)
    else:
        assert np.array_equal(materialised, materialised_f32)


@pytest.mark.parametrize("cache, tolerance", [("fp8", FP8_STORE), ("int8", INT8_STORE)])
def test_latents_keep_zero_and_scale_by_group(ops, cache, tolerance):
    """Groups of 128 with a scale each: a large group does not coarsen a small one, and zeros stay zeros."""
    latent, rope = 256, 2
    kv_a = np.zeros((3, latent + rope), np.float32)
    kv_a[0, :128], kv_a[0, 128:256] = 1000.0, 1e-3
    kv_a[1, 0] = 1
    _, stored = ops.mla_decode(
        kv_a,
        np.ones(latent, np.float32),
        1e-6,
        normal(3, 1, latent),
        normal(3, 1, rope),
        np.ones(1, np.float32),
        1.0,
        cache,
    )
    exact = ref.rms_norm(kv_a[:, :latent], np.ones(latent), 1e-6)
    for group in (slice(0, 128), slice(128, 256)):
        assert np.allclose(stored[0, group], exact[0, group], rtol=tolerance)
    assert not stored[2].any() and not stored[1, 1:].any()


@pytest.mark.parametrize("bad", [70, 71])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("cache", STORED)
def test_nan_reaches_those_that_see_it_and_nobody_else(cache, dtype, bad):
    """A latent that is NaN makes its own and later tokens NaN, whatever shares their tile or pair."""
    ops, tokens, latent, rope = testing.Ops(2, dtype), 80, 24, 6
    kv_a, weight, inv_freq, _ = latents_case(tokens, latent, rope)
    kv_a[bad, 3] = np.nan
    out, _ = ops.mla_decode(
        kv_a, weight, 1e-6, normal(tokens, 3, latent), normal(tokens, 3, rope), inv_freq, 0.3, cache
    )
    assert np.isnan(out[bad:]).all() and np.isfinite(out[:bad]).all()
    k_up = to_bf16(normal(3 * latent, 8, seed=4, scale=0.3))
    v_up = to_bf16(normal(3 * 12, latent, seed=5, scale=0.3))
    out, _ = ops.mla_prefill(kv_a, weight, 1e-6, normal(tokens, 3, 8 + rope), k_up, v_up, inv_freq, 0.3, cache)
    assert np.isnan(out[bad:]).all() and np.isfinite(out[:bad]).all()


def test_attention_pieces_depend_on_position_only():
    positions = (0, 127, 128, 2047, 2048, 16383, 16384, 20000, 65535, 65536, 131071, 131072, 140000)
    assert [testing.kv_piece_end(p) for p in positions] == [
        128, 128, 256, 2048, 2304, 16384, 16896, 20480, 65536, 66560, 131072, 133120, 141312,
    ]  # fmt: skip


def moe_case(tokens, hidden=20, width=9, routed=5, identity=3, topk=4):
    x = normal(tokens, hidden)
    weights = {
        "router.classifier.weight": normal(routed + identity, hidden, seed=1),
        "router.e_score_correction_bias": normal(routed + identity, seed=2, scale=0.05),
    }
    for e in range(routed):
        for i, (name, shape) in enumerate(
            [("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))]
        ):
            weights[f"experts.{e}.{name}_proj.weight"] = normal(*shape, seed=10 * e + i)
    return x, weights, {"n_routed_experts": routed, "moe_topk": topk, "routed_scaling_factor": 2.5}


def run_moe(ops, x, weights, config, num_real_tokens=-1):
    per_expert = [
        [weights[f"experts.{e}.{n}_proj.weight"] for e in range(config["n_routed_experts"])]
        for n in ("gate", "up", "down")
    ]
    return ops.moe(
        x, weights["router.classifier.weight"], weights["router.e_score_correction_bias"],
        config["moe_topk"], config["routed_scaling_factor"], *per_expert, num_real_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [1, 17])
def test_moe(ops, tokens):
    x, weights, config = moe_case(tokens)
    picks, pick_weights, identity, out = run_moe(ops, x, weights, config)
    routing = ref.router(x, weights["router.classifier.weight"], weights["router.e_score_correction_bias"], config)
    ascending = np.argsort(routing.expert_ids, axis=1)
    assert np.array_equal(picks, np.take_along_axis(routing.expert_ids, ascending, 1))
    assert_rows_close(pick_weights, np.take_along_axis(routing.expert_weights, ascending, 1), F32_TRANSCENDENTAL)
    assert np.allclose(identity, routing.identity_weight, rtol=F32_TRANSCENDENTAL)
    assert_rows_close(out + identity[:, None] * x, ref.moe(x, weights, config), F32_TRANSCENDENTAL)


def test_padded_rows_pick_no_expert(ops):
    x, weights, config = moe_case(5)
    whole = run_moe(ops, x, weights, config)
    padded = run_moe(ops, x, weights, config, num_real_tokens=3)
    for found, expected in zip(padded, whole, strict=True):
        assert np.array_equal(found[:3], expected[:3])
    picks, pick_weights, identity, out = padded
    assert (picks[3:] == config["n_routed_experts"]).all()
    assert not pick_weights[3:].any() and not identity[3:].any() and not out[3:].any()


def test_moe_with_identity_picks_only_runs_no_expert(ops):
    x, weights, config = moe_case(3, identity=4, topk=4)
    weights["router.e_score_correction_bias"][5:] += 10
    picks, pick_weights, identity, out = run_moe(ops, x, weights, config)
    assert picks.tolist() == [[5, 6, 7, 8]] * 3
    assert np.array_equal(out, np.zeros_like(x))
    assert np.allclose(identity, pick_weights.sum(axis=1), rtol=1e-6)


def test_correction_bias_selects_but_does_not_weigh(ops):
    x, weights, config = moe_case(2, topk=1)
    weights["router.e_score_correction_bias"][3] += 10
    picks, pick_weights, _, _ = run_moe(ops, x, weights, config)
    scores = ref.softmax(x.astype(np.float64) @ weights["router.classifier.weight"].T)
    assert picks.tolist() == [[3], [3]]
    assert np.allclose(pick_weights[:, 0], 2.5 * scores[:, 3], rtol=1e-5)


def test_router_ties_go_to_the_lowest_id(ops):
    x, weights, config = moe_case(2, topk=3)
    weights["router.classifier.weight"][:] = 0
    weights["router.e_score_correction_bias"][:] = 0
    picks, *_ = run_moe(ops, x, weights, config)
    assert picks.tolist() == [[0, 1, 2]] * 2


def test_dtype_conversions():
    values = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.4e38, 1e-40, np.inf, -np.inf], np.float32)
    assert [testing.to_bf16(float(v)) for v in values[:7]] == to_bf16(values[:7]).tolist()
    assert testing.to_bf16(float("nan")) & 0x7FFF > 0x7F80
    halves = np.arange(1 << 16, dtype=np.uint16)
    found = np.array([testing.half_to_float(int(h)) for h in halves], np.float32)
    assert np.array_equal(found, halves.view(np.float16).astype(np.float32), equal_nan=True)
    finite = halves[halves & 0x7C00 != 0x7C00]
    values = finite.view(np.float16).astype(np.float32)
    middles = (values + np.append(values[1:], np.float32(0))) / 2  # to even
    for given in (values, middles, np.array([65519.99, 65520, np.inf, -np.inf, 1e-8], np.float32)):
        with np.errstate(over="ignore"):
            assert [testing.to_half(float(v)) for v in given] == given.astype(np.float16).view(np.uint16).tolist()
    assert testing.to_half(float("nan")) & 0x7FFF > 0x7C00
    codes = np.arange(256, dtype=np.uint8)
    assert np.array_equal(
        np.array([testing.e4m3_to_float(int(c)) for c in codes], np.float32), from_e4m3(codes), equal_nan=True
    )


def test_e4m3_rounds_to_nearest_even():
    codes = np.arange(256, dtype=np.uint8)
    values = from_e4m3(codes)
    finite = ~np.isnan(values)
    for code, value in zip(codes[finite], values[finite], strict=True):
        assert testing.to_e4m3(float(value)) == code
    positive = values[:0x7F].astype(np.float64)  # ascending; the last is 448
    for low in range(0x7E):
        middle = (positive[low] + positive[low + 1]) / 2
        assert testing.to_e4m3(float(middle)) == low + low % 2  # the even one
        assert testing.to_e4m3(float(np.nextafter(np.float32(middle), np.float32(0)))) == low
        assert testing.to_e4m3(float(np.nextafter(np.float32(middle), np.float32(1e9)))) == low + 1
        assert testing.to_e4m3(-float(positive[low])) == (low | 0x80)
    for large in (449.0, 1e30, float("inf")):
        assert testing.to_e4m3(large) == 0x7E and testing.to_e4m3(-large) == 0xFE
    assert testing.to_e4m3(float("nan")) & 0x7F == 0x7F
