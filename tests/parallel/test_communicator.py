"""Collectives between ranks that are threads, against numpy."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longcat import _core
from longcat import _testing as testing

from support.collectives import DTYPES, check_collectives, check_groups_beside_each_other, check_splits
from support.ranks import all_well, on_ranks


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 8), count=st.integers(1, 300), dtype=st.sampled_from(DTYPES))
def test_collectives(size, count, dtype):
    all_well(on_ranks(size, lambda ranks: check_collectives(ranks, count, dtype)))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_sums_have_the_bits_of_small_ones(size, dtype):
    """More than what each rank sums by itself, and not a multiple of the ranks."""
    all_well(on_ranks(size, lambda ranks: check_collectives(ranks, 20_011, dtype)))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_splits(size):
    all_well(on_ranks(size, check_splits))


def test_groups_work_beside_each_other():
    assert all_well(on_ranks(4, check_groups_beside_each_other)) == [2.0**5, 2.0**6] * 2


def test_an_abort_reaches_all_who_wait():
    communicators = testing.thread_communicators(3)

    def work(ranks):
        if ranks.rank == 1:
            time.sleep(0.1)
            ranks.abort("rank 1 is gone")
            return
        ranks.split(0).barrier()

    began = time.monotonic()
    results = on_ranks(3, work, communicators)
    assert [str(r) for r in results] == ["rank 1 is gone", "None", "rank 1 is gone"]
    assert time.monotonic() - began < 5
    with pytest.raises(_core.Error, match="rank 1 is gone"):
        communicators[1].barrier()


@pytest.mark.parametrize("out, x", [(np.zeros(3, np.float32), np.zeros(2, np.float32)),
                                    (np.zeros(4, np.int32), np.zeros(2, np.float32))])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(out, x):
    def work(ranks):
        with pytest.raises(_core.Error):
            ranks.all_gather(out.copy(), x)

    all_well(on_ranks(2, work))
