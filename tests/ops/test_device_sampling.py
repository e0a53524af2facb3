"""Sampling and log-probabilities on every device."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.device_cases import CPU, sampling_cases

pytestmark = pytest.mark.device


def test_sampled_ids_are_the_cpus(ops):
    rng = np.random.default_rng(7)
    for case, (logits, params, history) in enumerate(sampling_cases(rng, 400)):
        found, expected = (o.sample(logits[None], [params], [history])[0] for o in (ops, CPU))
        assert found == expected, (case, params)


@pytest.mark.parametrize("top_k,top_p,min_p", [(50, 1, 0), (4, 0.95, 0), (0, 0.9, 0), (0, 0.5, 0.01), (700, 0.99, 0)])
def test_sampled_ids_of_a_large_vocabulary(ops, top_k, top_p, min_p):
    """Thresholds lie within bins of many ids, after removals that leave a list of some."""
    rng = np.random.default_rng(top_k)
    for case in range(4):
        logits = (rng.normal(size=30_000) * (0.3, 2, 5, 5)[case]).astype(np.float32)
        logits[rng.integers(0, 30_000, 200)] = logits.max()  # ties at the top
        params = {"seed": case, "temperature": 0.7, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        found, expected = (o.sample(logits[None], [params], [[5]])[0] for o in (ops, CPU))
        assert found == expected, case


def test_many_rows_at_once_are_the_rows_alone(ops):
    rng = np.random.default_rng(8)
    logits = np.round(rng.normal(size=(70, 50)) * 3, 1).astype(np.float32)
    params = [{"seed": s, "top_p": 0.8, "frequency_penalty": 0.2} for s in range(70)]
    histories = [rng.integers(0, 50, 1 + s).tolist() for s in range(70)]
    together = ops.sample(logits, params, histories).tolist()
    assert together == CPU.sample(logits, params, histories).tolist()


def test_a_recording_samples_the_rows_that_are_set(ops):
    """Three kernels and no copy, whatever the rows ask, even after their lists have outgrown their memory."""
    rng = np.random.default_rng(9)
    logits = rng.normal(size=(5, 9000)).astype(np.float32)
    histories = [rng.integers(0, 9000, 1 + 60 * s).tolist() for s in range(5)]
    allowed = [int(i) for i in rng.permutation(9000)[:8000]]
    calls = [
        [{"temperature": 0.0}] * 5,
        [{"seed": s, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2} for s in range(5)],
        [],
        [{"seed": s, "top_p": 0.7, "allowed_ids": allowed} for s in range(4)],
        [{"seed": 3, "min_p": 0.1}, {"temperature": 0.0, "banned_ids": [int(logits[1].argmax())]}],
    ]
    found, nodes = ops.sample_recorded(logits, calls, histories)
    for ids, params in zip(found, calls, strict=True):
        expected = CPU.sample(logits[: len(params)], params, histories[: len(params)]) if params else []
        assert ids.tolist() == [*expected, *[77] * (5 - len(params))]
    assert nodes == 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_logits_give_no_token(ops, value):
    logits = np.zeros((2, 40), np.float32)
    logits[0, 7] = value
    assert ops.sample(logits, [{}] * 2, [[0], [0]])[0] == -1
    logits[0, 7] = -np.inf
    assert ops.sample(logits, [{"temperature": 0.0}] * 2, [[0], [0]])[0] == 0
    assert ops.sample(logits, [{"banned_ids": list(range(40))}] * 2, [[0], [0]]).tolist() == [-1, -1]


def test_token_logprobs(ops):
    logits = np.random.default_rng(1).normal(size=(3, 500)).astype(np.float32)
    logits[0, [4, 9]] = 7  # a tie at the top
    logits[1, 5] = -np.inf
    chosen = np.array([9, 0, 17], np.int32)
    (values, ids, ranks), (cpu_values, cpu_ids, cpu_ranks) = (o.token_logprobs(logits, chosen, 5) for o in (ops, CPU))
    assert np.array_equal(ids, cpu_ids) and np.array_equal(ranks, cpu_ranks)
    assert np.abs(values - cpu_values).max() < 1e-5


def test_order_keys_are_ordered_like_floats():
    values = np.array([-np.inf, -3e38, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.5, 3e38, np.inf], np.float32)
    keys = [testing.order_key(float(v)) for v in values]
    assert [testing.value_of_key(key) for key in keys] == values.tolist()
    assert keys == sorted(keys) and keys[4] == keys[5] and len(set(keys)) == len(keys) - 1
