"""Frequencies and factors of YaRN against the published values for LongCat-Flash-Lite."""

import json

import numpy as np
import pytest
from longcat import _testing as testing

from reference import ops as ref
from support.checkpoints import TINY_CONFIG

LITE_YARN = {
    "rope_type": "yarn",
    "factor": 10,
    "original_max_position_embeddings": 32768,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1,
    "mscale_all_dim": 1,
}
LITE_INV_FREQ = """
1.0 6.175288e-1 3.813418e-1 2.354895e-1 1.454215e-1 8.980199e-2 5.545531e-2 3.424525e-2 2.114743e-2 1.305914e-2
8.064397e-3 4.419747e-3 2.383351e-3 1.258141e-3 6.450053e-4 3.168370e-4 1.453444e-4 5.868554e-5 1.705412e-5
1.053141e-5 6.503449e-6 4.016067e-6 2.480037e-6 1.531494e-6 9.457416e-7 5.840226e-7 3.606508e-7 2.227122e-7
1.375312e-7 8.492947e-8 5.244639e-8 3.238716e-8
"""


def config_with(**fields):
    return TINY_CONFIG | fields


def scaling_of(config):
    inv_freq, cos_sin, softmax = testing.rope_scaling(json.dumps(config))
    return np.array(inv_freq), cos_sin, softmax


def test_longcat_flash_lite():
    inv_freq, cos_sin, softmax = scaling_of(config_with(qk_rope_head_dim=64, rope_theta=5e6, rope_scaling=LITE_YARN))
    expected = np.array([float(v) for v in LITE_INV_FREQ.split()])
    assert len(expected) == 32
    assert np.abs(inv_freq / expected - 1).max() < 1e-6
    assert cos_sin == 1
    assert softmax == pytest.approx(1.5135359997, abs=1e-9)


def test_lite_sparse_values():
    yarn = LITE_YARN | {"rope_type": "deepseek_yarn", "factor": 120, "original_max_position_embeddings": 8192}
    _, cos_sin, softmax = scaling_of(config_with(qk_rope_head_dim=64, rope_theta=1e6, rope_scaling=yarn))
    assert (cos_sin, softmax) == (1, pytest.approx(2.1866991, abs=1e-6))


def test_no_scaling():
    inv_freq, cos_sin, softmax = scaling_of(config_with(qk_rope_head_dim=64, rope_theta=5e6, rope_scaling=None))
    assert np.allclose(inv_freq, 5e6 ** (-np.arange(0, 64, 2) / 64), rtol=1e-12)
    assert (cos_sin, softmax) == (1, 1)


@pytest.mark.parametrize(
    "change,cos_sin,softmax",
    [
        ({"mscale": None, "mscale_all_dim": None}, 0.1 * np.log(10) + 1, 1.0),
        ({"attention_factor": 1.3}, 1.3, 1.5135359997),
        ({"mscale": 0.5}, (0.05 * np.log(10) + 1) / (0.1 * np.log(10) + 1), 1.5135359997),
        ({"mscale_all_dim": 0}, 0.1 * np.log(10) + 1, 1.0),
    ],
)
def test_attention_factors(change, cos_sin, softmax):
    yarn = {k: v for k, v in (LITE_YARN | change).items() if v is not None}
    _, found_cos_sin, found_softmax = scaling_of(config_with(qk_rope_head_dim=64, rope_theta=5e6, rope_scaling=yarn))
    assert found_cos_sin == pytest.approx(cos_sin, abs=1e-9)
    assert found_softmax == pytest.approx(softmax, abs=1e-9)


@pytest.mark.parametrize("dim,theta,original,factor", [(32, 1e4, 512, 4.0), (8, 1e4, 32, 4.0), (16, 100.0, 64, 8.0)])
def test_other_shapes_match_the_reference(dim, theta, original, factor):
    yarn = LITE_YARN | {"factor": factor, "original_max_position_embeddings": original}
    config = config_with(qk_rope_head_dim=dim, rope_theta=theta, rope_scaling=yarn)
    inv_freq, cos_sin, _ = scaling_of(config)
    assert np.allclose(inv_freq, ref.yarn_inv_freq(config), rtol=1e-12)
    assert cos_sin == pytest.approx(ref.cos_sin_factor(config))
