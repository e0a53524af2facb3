"""Stored results fit the checkpoints that their recipes make today, and the formulas. Needs numpy only."""

import numpy as np
import pytest

from reference import ops
from reference.stored import stored_cases, stored_sampling
from support.checkpoints import read_checkpoint


@pytest.mark.parametrize("case", stored_cases(), ids=lambda case: case.name)
def test_first_sub_layer(tmp_path, case):
    """N-gram ids of every position and the first sub-layer's latents, from the checkpoint made again."""
    config = case.make(tmp_path)
    weights = read_checkpoint(tmp_path)
    if case.ngram_ids.shape[1]:
        assert np.array_equal(ops.ngram_ids(case.token_ids, config), case.ngram_ids)
    x = ops.ngram_embed(case.token_ids, weights, config)
    x = ops.rms_norm(x, weights["model.layers.0.input_layernorm.0.weight"], config["rms_norm_eps"])
    prefix = "model.layers.0.self_attn.0."
    attention = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
    latents = ops.mla_latents(x, attention, config)[case.latent_positions]
    np.testing.assert_allclose(latents, case.latents[0], atol=1e-5)
    assert case.logits.shape == (len(case.token_ids), config["vocab_size"])
    assert 1 - case.clear_positions().mean() <= 0.01


@pytest.mark.parametrize("row", range(4))
def test_sampling(row):
    case = stored_sampling()[row]
    for parameters, expected in zip(case.parameters, case.probabilities, strict=True):
        actual = ops.sampling_probabilities(case.logits, case.history, **parameters)
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-9, err_msg=str(parameters))
