"""The sampling op: distribution, order and draws."""

import math

import numpy as np
import pytest
from longcat._core import testing
from reference import ops as ref
from reference.stored import stored_sampling

NAMES = ("repetition_penalty", "temperature", "top_k", "top_p")


@pytest.fixture(scope="module")
def ops():
    return testing.Ops(2)


def test_philox_is_the_published_generator():
    # Known-answer vectors of the Random123 library, philox4x32 with 10 rounds.
    assert testing.philox4x32([0, 0, 0, 0], 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert testing.philox4x32([0xFFFFFFFF] * 4, 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    for counter, key in [((1, 2, 3, 4), (5, 6)), ((7, 0, 0, 1), (2**32 - 1, 9))]:
        assert tuple(testing.philox4x32(counter, key[0] | key[1] << 32)) == ref.philox4x32(counter, key)


def gumbel_choice(probabilities, seed, position, sample_idx=0):
    """What the op must draw: argmax of log p + Gumbel noise of the counter-based generator."""
    best, best_score = -1, -math.inf
    for token_id in np.flatnonzero(probabilities):
        uniform = testing.sampling_uniform(seed, int(token_id), position, sample_idx)
        score = math.log(probabilities[token_id]) - math.log(-math.log(uniform))
        if score > best_score:
            best, best_score = int(token_id), score
    return best


def test_draws_follow_transformers_distributions(ops):
    """Stored distributions of transformers' processors: the drawn token is the Gumbel choice among them."""
    for case in stored_sampling():
        history = list(case.history) or [0]
        for params, probabilities in zip(case.parameters, case.probabilities, strict=True):
            for seed in range(8):
                row = {**params, "seed": seed}
                if not case.history and params.get("repetition_penalty", 1.0) != 1.0:
                    continue
                [token] = ops.sample(case.logits[None], [row], [history])
                assert token == gumbel_choice(probabilities.astype(np.float64), seed, len(history) - 1), (
                    params,
                    seed,
                )


def test_random_cases_match_the_reference(ops):
    rng = np.random.default_rng(5)
    for case in range(300):
        vocab = int(rng.integers(1, 60))
        logits = np.round(rng.normal(size=vocab) * 3, 1).astype(np.float32)  # rounded: ties are common
        history = rng.integers(0, vocab, int(rng.integers(1, 70))).tolist()
        params = {
            "repetition_penalty": float(rng.choice([1.0, 1.06, 1.5])),
            "temperature": float(rng.choice([0.0, 0.5, 1.0])),
            "top_k": int(rng.choice([0, 1, 4, 200])),
            "top_p": float(rng.choice([1.0, 0.93])),
        }
        probabilities = ref.sampling_probabilities(logits, history, **params)
        [token] = ops.sample(logits[None], [{**params, "seed": case}], [history])
        assert token == gumbel_choice(probabilities, case, len(history) - 1), (params, case)


def test_frequencies(ops):
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]], np.float32))
    draws = 4000
    tokens = ops.sample(np.repeat(logits, draws, 0), [{"seed": s} for s in range(draws)], [[0]] * draws)
    counts = np.bincount(tokens, minlength=4) / draws
    assert np.abs(counts - np.exp(logits[0])).max() < 4 * math.sqrt(0.25 / draws)


def test_a_draw_depends_on_seed_position_and_sample_only(ops):
    logits = np.zeros((1, 50), np.float32)
    alone = ops.sample(logits, [{"seed": 9}], [[1, 2, 3]])
    crowd = ops.sample(
        np.repeat(logits, 5, 0),
        [{"seed": s} for s in (1, 2, 9, 3, 4)],
        [[1], [2, 2], [1, 2, 3], [4] * 70, [5]],
    )
    assert crowd[2] == alone[0]
    others = [ops.sample(logits, [{"seed": 9, "sample_idx": i}], [[1] * n])[0] for i in range(4) for n in (3, 4, 5)]
    assert len(set(others)) > 3


def test_greedy_takes_the_lowest_id_of_a_tie(ops):
    assert ops.sample(np.array([[1, 3, 3, 2]], np.float32), [{"temperature": 0.0}], [[0]]) == [1]


def test_tiny_temperature_is_greedy(ops):
    assert ops.sample(np.array([[1, 3, 2]], np.float32), [{"temperature": 1e-40}], [[0]]) == [1]
    assert ops.sample(np.array([[1, 3, 2]], np.float32), [{"temperature": 1e-30}], [[0]]) == [1]


def test_nan_or_infinite_logits_give_no_token(ops):
    for bad in (np.nan, np.inf):
        logits = np.array([[1, bad, 2], [1, 5, 2]], np.float32)
        for temperature in (0.0, 1.0):
            tokens = ops.sample(logits, [{"temperature": temperature, "top_k": 1}] * 2, [[0], [0]])
            assert tokens == [-1, 1]
    assert ops.sample(np.full((1, 3), -np.inf, np.float32), [{}], [[0]]) == [-1]
