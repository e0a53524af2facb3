"""The formulas of reference.ops against worked examples and against each other. Needs numpy only."""

import numpy as np
import pytest

from reference import ops
from support.checkpoints import (
    VARIANTS,
    from_e4m3,
    make_checkpoint,
    random_token_ids,
    random_uniform,
    read_checkpoint,
    to_e4m3,
)

LITE = {
    "vocab_size": 131072,
    "ngram_vocab_size_ratio": 78,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "eos_token_id": 2,
}
LITE_ROPE = {
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_theta": 5e6,
    "max_position_embeddings": 327680,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 10,
        "original_max_position_embeddings": 32768,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1,
        "mscale_all_dim": 1,
    },
}

# V = 100, ratio 3, N = 4, K = 2: ids of tables 0..5, position by position
SMALL_CASES = [
    (
        [10, 11, 12, 2, 13, 14],
        [
            [10] * 6,
            [108, 102, 96, 90, 84, 78],
            [209, 203, 157, 109, 69, 37],
            [299, 293, 182, 68, 104, 281],
            [13] * 6,
            [110, 102, 94, 86, 78, 70],
        ],
    ),
    (
        [97, 98, 99, 2, 55, 60],
        [
            [97] * 6,
            [166, 102, 38, 281, 219, 157],
            [267, 203, 239, 262, 60, 249],
            [270, 206, 177, 134, 131, 22],
            [55] * 6,
            [142, 106, 70, 34, 307, 273],
        ],
    ),
]

# LongCat-Flash-Lite's own sizes: (tokens, position, tables, ids)
ALL_TABLES, FIRST_SPLITS = list(range(12)), [0, 4, 8]
LITE_CASES = [
    (
        [10, 11, 12, 13, 14],
        4,
        ALL_TABLES,
        [1703950] * 4 + [736033, 695703, 655373, 615043, 8151286, 8517876, 8886362, 9256744],
    ),
    (
        [10, 11, 2, 14, 15, 16],
        2,
        ALL_TABLES,
        [1441794] * 4 + [2339134, 2305526, 2271918, 2238310, 2204702, 2171094, 2137486, 2103878],
    ),
    ([10, 11, 2, 14, 15, 16], 3, ALL_TABLES, [14] * 12),
    ([10, 11, 2, 14, 15, 16], 4, ALL_TABLES, [1835023] * 12),
    (
        [10, 11, 2, 14, 15, 16],
        5,
        ALL_TABLES,
        [1966096] * 4 + [9356547, 9309497, 9262447, 9215397, 9168347, 9121297, 9074247, 9027197],
    ),
    (
        [131071, 131070, 131069, 131068],
        3,
        ALL_TABLES,
        [3930476, 3927116, 3923756, 3920396, 8183666, 7293911, 6404328, 5514917] + [8016838, 4204349, 2534734, 3007981],
    ),
    ([3, 2, 4, 5, 2, 6, 7, 8], 7, FIRST_SPLITS, [917512, 5545366, 5464710]),
    ([2, 10, 11, 12], 3, FIRST_SPLITS, [1441804, 2339144, 2204712]),
]

LITE_INV_FREQ = """
    1.0 6.175288e-1 3.813418e-1 2.354895e-1 1.454215e-1 8.980199e-2 5.545531e-2 3.424525e-2 2.114743e-2
    1.305914e-2 8.064397e-3 4.419747e-3 2.383351e-3 1.258141e-3 6.450053e-4 3.168370e-4 1.453444e-4
    5.868554e-5 1.705412e-5 1.053141e-5 6.503449e-6 4.016067e-6 2.480037e-6 1.531494e-6 9.457416e-7
    5.840226e-7 3.606508e-7 2.227122e-7 1.375312e-7 8.492947e-8 5.244639e-8 3.238716e-8"""


@pytest.mark.parametrize(("token_ids", "expected"), SMALL_CASES)
def test_ngram_ids_small(token_ids, expected):
    config = {**LITE, "vocab_size": 100, "ngram_vocab_size_ratio": 3, "emb_split_num": 2}
    assert ops.ngram_ids(token_ids, config).tolist() == expected


@pytest.mark.parametrize(("token_ids", "position", "tables", "expected"), LITE_CASES)
def test_ngram_ids_lite(token_ids, position, tables, expected):
    assert ops.ngram_ids(token_ids, LITE)[position, tables].tolist() == expected


def test_yarn_lite():
    expected = [float(x) for x in LITE_INV_FREQ.split()]
    np.testing.assert_allclose(ops.yarn_inv_freq(LITE_ROPE), expected, rtol=5e-7)
    assert ops.softmax_scale(LITE_ROPE) == pytest.approx(0.1092300521, abs=1e-10)
    assert ops.cos_sin_factor(LITE_ROPE) == 1.0


def test_yarn_sparse_variant():
    scaling = {**LITE_ROPE["rope_scaling"], "factor": 120, "original_max_position_embeddings": 8192}
    config = {**LITE_ROPE, "rope_theta": 1e6, "rope_scaling": scaling}
    assert ops.softmax_scale(config) / 192**-0.5 == pytest.approx(2.1866991, abs=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_absorbed_equals_materialised(tmp_path, variant):
    config = make_checkpoint(tmp_path, **VARIANTS[variant])
    prefix = "model.layers.0.self_attn.0."
    weights = {k.removeprefix(prefix): w for k, w in read_checkpoint(tmp_path).items() if k.startswith(prefix)}
    x = random_uniform(0, "x", (90, config["hidden_size"]), 0.0, 1.0)
    out, absorbed = ops.mla(x, weights, config), ops.mla(x, weights, config, absorbed=True)
    assert 0.1 < out.std() < 10
    np.testing.assert_allclose(absorbed, out, atol=1e-12)


def test_router_ties_go_to_the_lowest_id():
    config = {"moe_topk": 2, "n_routed_experts": 3, "routed_scaling_factor": 6.0}
    routing = ops.router(np.ones((1, 4)), np.zeros((5, 4)), np.zeros(5), config)
    assert routing.expert_ids.tolist() == [[0, 1]]
    np.testing.assert_allclose(routing.expert_weights, 6 / 5)
    assert routing.gap == 0


def test_router_bias_selects_but_does_not_weigh():
    config = {"moe_topk": 2, "n_routed_experts": 3, "routed_scaling_factor": 6.0}
    routing = ops.router(np.ones((1, 4)), np.zeros((5, 4)), np.array([0, 0, 0.1, 0, 0.2]), config)
    assert routing.expert_ids.tolist() == [[4, 2]]
    np.testing.assert_allclose(routing.expert_weights, 6 / 5)
    np.testing.assert_allclose(routing.identity_weight, 6 / 5)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),  # the known answers published with the generator
    [
        ([0] * 4, [0] * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox(counter, key, expected):
    assert ops.philox4x32(counter, key) == expected


def test_sampling_order():
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    p = ops.sampling_probabilities
    np.testing.assert_allclose(p(logits), [0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(p(logits, top_k=2), [4 / 7, 3 / 7, 0, 0])
    # top-p counts the share among top-k's survivors: 4/7 reaches 0.5, although 0.4 does not
    np.testing.assert_allclose(p(logits, top_k=2, top_p=0.5), [1, 0, 0, 0])
    # ties with the k-th stay
    np.testing.assert_allclose(p([1.0, 1.0, 1.0, 0.0], top_k=1), [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(p([2.0, 1.5, -1.0], history=[0, 0, 2], repetition_penalty=2.0, temperature=0), [0, 1, 0])
    np.testing.assert_allclose(p([1.0, -1.0], history=[1], repetition_penalty=2.0), ops.softmax(np.array([1.0, -2.0])))


def test_e4m3_round_trip():
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    assert np.array_equal(to_e4m3(from_e4m3(codes)), codes)
    # ties go to the even code, beyond the range it saturates
    assert from_e4m3(to_e4m3(np.float32([17, 19, -17, 1e9, 0.0]))).tolist() == [16, 20, -16, 448, 0]


def test_checkpoints_are_reproducible(tmp_path):
    """Known bytes: stored results depend on them."""
    assert random_token_ids(0, 8) == [67, 111, 51, 16, 95, 2, 31, 2]
    uniform = [-1.2990964651107788, 1.6982088088989258, -0.4024432301521301]
    assert random_uniform(0, "w", (3,), 0.0, 1.0).tolist() == uniform
    for folder, shards in (("one", 1), ("four", 4)):
        make_checkpoint(tmp_path / folder, seed=5, dtype="FP8", shards=shards, mtp=True)
    one, four = read_checkpoint(tmp_path / "one"), read_checkpoint(tmp_path / "four")
    assert one.keys() == four.keys()
    assert all(np.array_equal(one[name], four[name]) for name in one)
