"""reference.ops.sampling_probabilities against transformers' logits processors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from oracle.sampling import PARAMETERS, generate_probabilities, hf_probabilities, random_logits  # noqa: E402
from reference import ops  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("seed", range(20))
def test_probabilities(seed):
    logits, history = random_logits(seed)
    for parameters in PARAMETERS:
        expected = hf_probabilities(logits, history, **parameters)
        actual = ops.sampling_probabilities(logits, history, **parameters)
        np.testing.assert_array_equal(actual > 0, expected > 0, err_msg=f"survivors of {parameters}")
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-9, err_msg=str(parameters))


@pytest.mark.parametrize("seed", range(5))
def test_ties_at_the_kth_stay(seed):
    logits, history = random_logits(seed)
    logits = np.round(logits * 4) / 4
    for parameters in PARAMETERS:
        expected = hf_probabilities(logits, history, **parameters)
        actual = ops.sampling_probabilities(logits, history, **parameters)
        # Which of several equal logits top-p drops is left to torch.sort: compare how many stay, and their sizes.
        np.testing.assert_allclose(np.sort(actual), np.sort(expected), rtol=2e-5, atol=1e-9, err_msg=str(parameters))


def test_the_op_equals_generate_on_random_cases():
    """1,000 random settings and logits, half of them full of ties: same survivors, same distribution."""
    core = pytest.importorskip("longcat._testing").Ops(1)
    rng = np.random.default_rng(11)
    worst = 0.0
    for case in range(1000):
        vocab = int(rng.integers(4, 300))
        logits = (rng.normal(size=vocab) * 3).astype(np.float32)
        if case % 2:
            logits = np.round(logits * 2) / 2
        history = rng.integers(0, vocab, int(rng.integers(1, 80))).tolist()
        settings = {
            "repetition_penalty": float(rng.choice([1.0, 1.06, 1.4])),
            "temperature": float(rng.choice([1.0, 0.7, 1.9])),
            "top_k": int(rng.choice([0, 1, 4, 40])),
            "top_p": float(rng.choice([1.0, 0.95, 0.6])),
        }
        ours, theirs = dict(settings), dict(settings)
        if rng.random() < 0.4:
            ours["min_p"] = theirs["min_p"] = float(rng.choice([0.05, 0.31]))
        if rng.random() < 0.3:
            token_id = int(rng.integers(1, vocab))
            ours["logit_bias"], theirs["sequence_bias"] = {token_id: 1.5}, [[[token_id], 1.5]]
        if rng.random() < 0.3:
            words = [[history[-1], int(rng.integers(vocab))], [int(rng.integers(1, vocab))]]
            ours["bad_words"] = theirs["bad_words_ids"] = words
        expected = generate_probabilities(logits, history, **theirs)
        scores = core.process_logits(logits, ours, history).astype(np.float64)
        actual = ops.softmax(scores)
        if case % 2:  # among equals it is torch.sort that chooses what top-p drops
            actual, expected = np.sort(actual), np.sort(expected)
        assert np.array_equal(actual > 0, expected > 0), (case, ours)
        worst = max(worst, float(np.abs(actual - expected).max()))
    print(f"1000 cases: survivors equal, largest difference of a probability {worst:.1e}")
    assert worst < 1e-6
