"""Rounding for inputs: GPTQ, and the moments it works with."""

import json

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.checkpoint.calibration.gptq import error_propagation, round_int4
from longcat.checkpoint.calibration.moments import InputMoments

from support.checkpoints import VARIANTS, make_checkpoint, read_checkpoint, to_bf16


def matrix(q, scales):
    return q * np.repeat(scales, 32, axis=1)[:, : q.shape[1]]


@pytest.mark.parametrize("shape", [(5, 32), (16, 96), (7, 45), (1, 3)])
def test_what_int4_can_hold_is_kept(shape):
    rng = np.random.default_rng(1)
    q = rng.integers(-8, 8, shape)
    q[:, ::32] = -8  # so that the scale can be seen
    scales = 2.0 ** rng.integers(-6, 0, (shape[0], -(-shape[1] // 32)))
    x = rng.standard_normal((200, shape[1]))
    found, found_scales = round_int4(matrix(q, scales).astype(np.float32), error_propagation(x.T @ x))
    assert np.array_equal(matrix(found, found_scales), matrix(q, scales))


def test_inputs_that_have_nothing_in_common_are_rounded_one_by_one():
    weight = np.random.default_rng(2).standard_normal((24, 64)).astype(np.float32)
    for moments in (np.eye(64, dtype=np.float32), np.zeros((64, 64), np.float32)):
        q, scales = round_int4(weight, error_propagation(moments))
        expected = _core.search_int4_scales(weight.reshape(-1, 32)).reshape(24, 2)
        assert np.array_equal(scales, expected)
        assert np.array_equal(q, np.rint(weight * np.repeat(1 / expected, 32, axis=1)).clip(-8, 7))


def test_outputs_move_less_than_by_rounding_each_weight():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((48, 160)).astype(np.float32)
    x = rng.standard_normal((4000, 40)) @ rng.standard_normal((40, 160))  # 40 directions
    x += 0.1 * rng.standard_normal(x.shape)
    q, scales = round_int4(weight, error_propagation(x.T @ x))
    plain = _core.search_int4_scales(weight.reshape(-1, 32)).reshape(48, 5)
    plain_q = np.rint(weight / np.repeat(plain, 32, axis=1)).clip(-8, 7)
    error = [np.square(x @ (rounded - weight).T).mean() for rounded in (matrix(q, scales), matrix(plain_q, plain))]
    assert error[0] < 0.5 * error[1]


@pytest.mark.parametrize("n", [1, 45, 129, 333])
def test_propagation_is_the_root_of_the_inverse(n):
    x = np.random.default_rng(6).standard_normal((50, n))
    moments = x.T @ x
    u = error_propagation(moments).astype(np.float64)
    assert np.array_equal(u, np.triu(u))
    damped = moments + 0.1 * np.mean(np.diag(moments)) * np.eye(n)
    assert np.allclose(u.T @ u @ damped, np.eye(n), atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 32), (13, 77)])
def test_packed_values_are_those_given(shape):
    rng = np.random.default_rng(4)
    q = rng.integers(-8, 8, shape).astype(np.int8)
    scales = (2.0 ** rng.integers(-6, 0, (shape[0], -(-shape[1] // 32)))).astype(np.float32)
    packed = _core.pack_grid(q, to_bf16(scales), "int4_x8")
    identity = np.eye(shape[1], dtype=np.float32)
    found = testing.Ops(1).linear_packed(identity, packed, "int4_x8", shape[0]).T
    assert np.allclose(found, matrix(q, scales), rtol=1e-6)


def test_moments_are_those_of_the_inputs(tmp_path):
    make_checkpoint(str(tmp_path), seed=3, **VARIANTS["flash_chat"])  # no N-gram tables: the input is the word's vector
    config = json.loads((tmp_path / "config.json").read_text())
    weights = read_checkpoint(tmp_path)
    ids = np.random.default_rng(5).integers(0, config["vocab_size"], 2500).tolist()
    prefix = "model.layers.0.self_attn.0."
    widths = {prefix + "q_a_proj.weight": config["hidden_size"], prefix + "kv_b_proj.weight": config["kv_lora_rank"]}
    moments = InputMoments(tmp_path, ids, widths)
    h = weights["model.embed_tokens.weight"][ids].astype(np.float64)
    h /= np.sqrt(np.square(h).mean(axis=1, keepdims=True) + config["rms_norm_eps"])
    x = h * weights["model.layers.0.input_layernorm.0.weight"]
    assert np.allclose(moments.of(prefix + "q_a_proj.weight"), x.T @ x, rtol=1e-3, atol=1e-3 * len(ids) ** 0.5)
    assert moments.of(prefix + "kv_b_proj.weight") is None  # multiplied by heads, in two parts
