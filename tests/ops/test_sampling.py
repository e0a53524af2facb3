"""The sampling op: distribution, order and draws."""

import math

import numpy as np
import pytest
from longcat import _testing as testing

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


def random_case(rng):
    """(logits, history, parameters of process_logits, keywords of the reference)."""
    vocab = int(rng.integers(1, 60))
    logits = np.round(rng.normal(size=vocab) * 3, 1).astype(np.float32)  # rounded: ties are common
    history = rng.integers(0, vocab, int(rng.integers(1, 70))).tolist()
    params = {
        "repetition_penalty": float(rng.choice([1.0, 1.06, 1.5])),
        "temperature": float(rng.choice([0.0, 0.5, 1.0, 1.7])),
        "top_k": int(rng.choice([0, 1, 4, 200])),
        "top_p": float(rng.choice([1.0, 0.93, 0.41])),
        "min_p": float(rng.choice([0.0, 0.0613])),
        "presence_penalty": float(rng.choice([0.0, 0.7])),
        "frequency_penalty": float(rng.choice([0.0, -0.3])),
        "num_prompt_tokens": int(rng.integers(0, len(history) + 1)),
        "logit_bias": {int(i): float(rng.choice([-2.0, 1.5])) for i in rng.integers(0, vocab, int(rng.integers(0, 3)))},
    }
    banned = [int(i) for i in rng.integers(0, vocab, int(rng.integers(0, 3)))]
    word = [history[-1], int(rng.integers(vocab))] if rng.random() < 0.3 else []
    allowed = sorted({int(i) for i in rng.integers(0, vocab, 20)}) if rng.random() < 0.3 else []
    masked = rng.random(vocab) < 0.2 if rng.random() < 0.3 else np.zeros(vocab, bool)
    forbidden = {*banned, *word[1:], *np.flatnonzero(masked).tolist()}
    if allowed:
        forbidden |= set(range(vocab)) - set(allowed)
    if len(forbidden) == vocab:
        banned, word, allowed, masked, forbidden = [], [], [], np.zeros(vocab, bool), set()
    lists = {"banned_ids": banned, "bad_words": [word] if word else [], "allowed_ids": allowed}
    if masked.any():
        bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
        bits[:vocab] = ~masked
        lists["mask"] = np.packbits(bits, bitorder="little").view("<u4").tolist()
    return logits, history, {**params, **lists}, {**params, "removed": sorted(forbidden)}


def test_distributions_match_the_reference(ops):
    rng = np.random.default_rng(5)
    for case in range(1000):
        logits, history, params, expected = random_case(rng)
        probabilities = ref.sampling_probabilities(logits, history, **expected)
        scores = ops.process_logits(logits, params, history).astype(np.float64)
        found = ref.softmax(scores)
        assert np.array_equal(found > 0, probabilities > 0), (case, params)
        assert np.abs(found - probabilities).max() < 1e-6, (case, params)
        [token] = ops.sample(logits[None], [{**params, "seed": case}], [history])
        assert token == gumbel_choice(probabilities, case, len(history) - 1), (case, params)


def test_bad_words_are_sequences(ops):
    logits = np.array([[0, 1, 2, 3]], np.float32)
    words = {"temperature": 0.0, "bad_words": [[1, 2, 3], [0, 0, 0, 0, 0, 2]]}
    assert ops.sample(logits, [words] * 1, [[0, 1, 2]]) == [2]
    assert ops.sample(logits, [words] * 1, [[0, 2, 2]]) == [3]
    assert ops.sample(logits, [words] * 1, [[2]]) == [3]  # longer than the history


def test_sample_leaves_the_logits_as_they_are(ops):
    logits = np.random.default_rng(0).normal(size=(2, 40)).astype(np.float32)
    before = logits.copy()
    ops.sample(logits, [{"temperature": 0.5, "top_k": 3, "repetition_penalty": 2.0}] * 2, [[1, 2], [3]])
    assert np.array_equal(logits, before)


def test_token_logprobs(ops):
    logits = np.random.default_rng(1).normal(size=(3, 50)).astype(np.float32)
    logits[0, [4, 9]] = 7  # a tie at the top
    chosen = np.array([9, 0, 17], np.int32)
    logprobs, ids, ranks = ops.token_logprobs(logits, chosen, 5)
    exact = np.log(ref.softmax(logits.astype(np.float64)))
    assert np.array_equal(ids[:, 0], chosen)
    assert ids[0, 1:3].tolist() == [4, 9]
    assert np.array_equal(ids[:, 1:], np.argsort(-logits, axis=1, kind="stable")[:, :5])
    assert np.abs(logprobs - np.take_along_axis(exact, ids.astype(np.int64), 1)).max() < 1e-5
    assert ranks.tolist() == [1 + int((row > row[c]).sum()) for row, c in zip(logits, chosen, strict=True)]


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
