"""reference.ops.sampling_probabilities against transformers' logits processors."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from reference import ops  # noqa: E402

from oracle.sampling import PARAMETERS, hf_probabilities, random_logits  # noqa: E402

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
        if "top_p" not in parameters:  # which of several equal logits top-p drops is not specified
            expected = hf_probabilities(logits, history, **parameters)
            actual = ops.sampling_probabilities(logits, history, **parameters)
            np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-9, err_msg=str(parameters))
