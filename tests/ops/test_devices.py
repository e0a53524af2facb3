"""One table for every device: each op of the CUDA backend against the same op of the CPU backend.

`cuda-emulated` walks the kernels on the host, so all but the CUTLASS kernels are compared with the CPU everywhere. With
f32 activations only the order of additions differs. `cuda` is a real GPU, skipped and counted where there is none. This
file has norms, sums and rotary embedding; the files `test_device_*.py` have the other areas.
"""

import numpy as np
import pytest
from longcat import _testing as testing

from support.compare import assert_rows_close
from support.device_cases import CPU, attention_case, moe_case, ngram_tables, normal, random_steps, sampling_cases
from support.devices import EMULATED, EMULATED_REVERSED

pytestmark = pytest.mark.device


@pytest.mark.parametrize("tokens,dim", [(1, 1), (7, 96), (3, 513), (2, 2304)])
def test_norms(ops, tolerance, tokens, dim):
    x, residual, weight = normal(tokens, dim), normal(tokens, dim, seed=1, scale=3), normal(dim, seed=2)
    assert_rows_close(ops.rms_norm(x, weight, 1e-5), CPU.rms_norm(x, weight, 1e-5), tolerance)
    for found, expected in zip(
        ops.add_rms_norm(residual, x, weight, 1e-6), CPU.add_rms_norm(residual, x, weight, 1e-6), strict=True
    ):
        assert_rows_close(found, expected, tolerance)


@pytest.mark.parametrize("dim", [70, 264])  # by single values, and by 16 bytes
def test_elementwise(ops, tolerance, dim):
    x, y, row_weight = normal(5, dim), normal(5, dim, seed=1), normal(5, seed=2)
    assert_rows_close(ops.add(x, y), CPU.add(x, y), tolerance)
    assert_rows_close(ops.add_scaled_rows(x, y, row_weight), CPU.add_scaled_rows(x, y, row_weight), tolerance)
    gate = 5 * x
    gate[0, :3] = [-100, 0, 100]
    assert_rows_close(ops.silu_mul(gate, y), CPU.silu_mul(gate, y), tolerance)
    rows = np.array([4, 0, 0, 2], np.int32)
    assert np.array_equal(ops.gather_rows(x, rows), x[rows])
    parts = normal(3, 4, 50, seed=3)  # of ranks, whose last rows are padding
    assert np.array_equal(ops.merge_vocab_parts(parts, 3), np.concatenate(parts[:, :3], axis=1))


@pytest.mark.parametrize("dim", [70, 264])
@pytest.mark.parametrize("is_routed", [True, False])
def test_the_end_of_a_layer_in_one_gives_the_bits_of_its_parts(ops, tolerance, is_routed, dim):
    residual, x, routed, y = (normal(5, dim, seed=seed) for seed in range(4))
    routed = routed if is_routed else np.empty((0, dim), np.float32)
    case = residual, x, routed, y, normal(5, seed=4), normal(dim, seed=5), 1e-5
    found, parts = (ops.add_shortcut_rms_norm(*case, fused) for fused in (True, False))
    for a, b, expected in zip(found, parts, CPU.add_shortcut_rms_norm(*case, True), strict=True):
        assert np.array_equal(a, b)
        assert_rows_close(a, expected, tolerance)


def test_select_token_ids(ops):
    ids, sampled = np.array([5, 6, 7, 8], np.int32), np.array([30, -1, 32], np.int32)
    sources = np.array([-1, 2, 1, 0], np.int32)
    assert ops.select_token_ids(ids, sampled, sources).tolist() == [5, 32, 0, 30]


@pytest.mark.parametrize("dim", [8, 6, 64])
@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_rope(ops, tolerance, factor, dim):
    positions = np.array([0, 1, 63, 64, 5000, 262143], np.int32)
    x, inv_freq = normal(6, 3, dim), (5e6 ** (-np.arange(0, dim, 2) / dim)).astype(np.float32)
    assert_rows_close(ops.rope(x, positions, inv_freq, factor), CPU.rope(x, positions, inv_freq, factor), tolerance)


def test_no_result_depends_on_the_order_of_blocks_and_threads():
    forwards, backwards = testing.DeviceOps(EMULATED), testing.DeviceOps(EMULATED_REVERSED)
    case = moe_case(17, 20, 9, 5, 3, 4)
    for a, b in zip(forwards.moe(**case), backwards.moe(**case), strict=True):
        assert np.array_equal(a, b)
    for generated in (True, False):
        case = attention_case([65, 1, 130], generated, heads=9, latent=24, rope=6)
        for cache_dtype in ("bf16", "fp8"):
            for a, b in zip(
                forwards.attention(cache_dtype=cache_dtype, **case),
                backwards.attention(cache_dtype=cache_dtype, **case),
                strict=True,
            ):
                assert np.array_equal(a, b)
    rng, tables = np.random.default_rng(3), ngram_tables(4, 4, dim=8)
    steps = random_steps(rng, vocab=97, eos=2)
    for a, b in zip(*(o.ngram_lookup(steps, tables, 97, 4, 4, 2, 9) for o in (forwards, backwards)), strict=True):
        assert np.array_equal(a, b)
    for logits, params, history in sampling_cases(rng, 60):
        assert np.array_equal(*(o.sample(logits[None], [params], [history]) for o in (forwards, backwards)))
