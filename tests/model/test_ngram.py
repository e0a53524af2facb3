"""N-gram ids: the worked examples of the specification, and every way a chunk can cut a sequence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longcat import _testing as testing

from reference import ops as ref
from support.checkpoints import random_token_ids

SMALL = dict(vocab_size=100, table_rows=300, max_order=4, splits=2, eos_token_id=2)
REAL = dict(vocab_size=131072, table_rows=78 * 131072, max_order=4, splits=4, eos_token_id=2)

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

# (sequence, position, ids of tables 0..11, or of tables 0, 4, 8)
REAL_CASES = [
    (
        [10, 11, 12, 13, 14],
        4,
        [1703950] * 4 + [736033, 695703, 655373, 615043, 8151286, 8517876, 8886362, 9256744],
    ),
    (
        [10, 11, 2, 14, 15, 16],
        2,
        [1441794] * 4 + [2339134, 2305526, 2271918, 2238310, 2204702, 2171094, 2137486, 2103878],
    ),
    ([10, 11, 2, 14, 15, 16], 3, [14] * 12),
    ([10, 11, 2, 14, 15, 16], 4, [1835023] * 12),
    (
        [10, 11, 2, 14, 15, 16],
        5,
        [1966096] * 4 + [9356547, 9309497, 9262447, 9215397, 9168347, 9121297, 9074247, 9027197],
    ),
    (
        [131071, 131070, 131069, 131068],
        3,
        [
            3930476,
            3927116,
            3923756,
            3920396,
            8183666,
            7293911,
            6404328,
            5514917,
            8016838,
            4204349,
            2534734,
            3007981,
        ],
    ),
    ([3, 2, 4, 5, 2, 6, 7, 8], 7, [917512, 5545366, 5464710]),
    ([2, 10, 11, 12], 3, [1441804, 2339144, 2204712]),
]


@pytest.mark.parametrize("token_ids,expected", SMALL_CASES)
@pytest.mark.parametrize("chunks", [[6], [1], [2], [3, 1, 2], [5, 1]])
def test_worked_example(token_ids, expected, chunks):
    assert testing.ngram_ids(token_ids, **SMALL, chunk_sizes=chunks).tolist() == expected


@pytest.mark.parametrize("token_ids,position,expected", REAL_CASES)
@pytest.mark.parametrize("chunks", [[8], [1], [3]])
def test_real_dimensions(token_ids, position, expected, chunks):
    ids = testing.ngram_ids(token_ids, **REAL, chunk_sizes=chunks)[position].tolist()
    assert (ids if len(expected) == 12 else [ids[0], ids[4], ids[8]]) == expected


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_cut_gives_the_reference_ids(data):
    order, splits = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    vocab = data.draw(st.sampled_from([4, 101, 131072]))
    eos = data.draw(st.sampled_from([2, 0]))
    token = st.one_of(st.just(eos), st.integers(0, vocab - 1))
    token_ids = data.draw(st.lists(token, min_size=1, max_size=150))
    chunks = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=20))
    config = {
        "vocab_size": vocab,
        "ngram_vocab_size_ratio": 3,
        "emb_neighbor_num": order,
        "emb_split_num": splits,
        "eos_token_id": eos,
    }
    found = testing.ngram_ids(token_ids, vocab, 3 * vocab, order, splits, eos, chunks)
    assert np.array_equal(found, ref.ngram_ids(token_ids, config))


def test_look_back_crosses_a_block_boundary():
    token_ids = random_token_ids(1, 200, vocab_size=131072)
    config = {
        "vocab_size": 131072,
        "ngram_vocab_size_ratio": 78,
        "emb_neighbor_num": 4,
        "emb_split_num": 4,
        "eos_token_id": 2,
    }
    expected = ref.ngram_ids(token_ids, config)
    for chunks in ([200], [1], [63], [64], [65], [64, 1]):
        assert np.array_equal(testing.ngram_ids(token_ids, **REAL, chunk_sizes=chunks), expected)
