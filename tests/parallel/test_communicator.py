"""Collectives between ranks that are threads, against numpy; any transport has to pass check_collectives."""

import threading
import time

import numpy as np
import pytest
from checkpoints import from_bf16, to_bf16
from hypothesis import given, settings
from hypothesis import strategies as st
from longcat import _core
from longcat import _testing as testing

from parallel.ranks import all_well, on_ranks

DTYPES = ["f32", "bf16", "i32"]


def values(rank: int, count: int, dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, rank, count])
    if dtype == "i32":
        return rng.integers(-(1 << 20), 1 << 20, count).astype(np.int32)
    floats = (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype(np.float32)
    return to_bf16(floats) if dtype == "bf16" else floats


def expected_sum(parts: list[np.ndarray]) -> np.ndarray:
    """In fp32, ascending, rounded once."""
    if parts[0].dtype == np.int32:
        return sum(parts[1:], start=parts[0])
    wide = [from_bf16(p) if p.dtype == np.uint16 else p for p in parts]
    total = wide[0].copy()
    for part in wide[1:]:
        total += part
    return to_bf16(total) if parts[0].dtype == np.uint16 else total


def check_collectives(ranks, count: int, dtype: str) -> None:
    """Everything once, on one rank of a job."""
    size, rank = ranks.size, ranks.rank
    whole = [values(r, count, dtype) for r in range(size)]
    x = whole[rank].copy()
    ranks.all_reduce(x)
    assert x.tobytes() == expected_sum(whole).tobytes()

    gathered = np.zeros(size * count, x.dtype)
    ranks.all_gather(gathered, whole[rank])
    assert gathered.tobytes() == np.concatenate(whole).tobytes()

    blocks = [values(r, size * count, dtype, seed=1) for r in range(size)]
    mine = slice(rank * count, (rank + 1) * count)
    exchanged = np.zeros(size * count, x.dtype)
    ranks.all_to_all(exchanged, blocks[rank])
    assert exchanged.tobytes() == np.concatenate([b[mine] for b in blocks]).tobytes()

    part = np.zeros(count, x.dtype)
    ranks.reduce_scatter(part, blocks[rank])
    assert part.tobytes() == expected_sum([b[mine] for b in blocks]).tobytes()

    for root in range(size):
        x = whole[rank].copy()
        ranks.broadcast(x, root)
        assert x.tobytes() == whole[root].tobytes()
    ranks.barrier()


def check_splits(ranks) -> None:
    """Colours make groups in the order of the ranks."""
    for color_of in (lambda rank: 0, lambda rank: rank % 2, lambda rank: rank // 2, lambda rank: rank):
        group = ranks.split(color_of(ranks.rank))
        members = [r for r in range(ranks.size) if color_of(r) == color_of(ranks.rank)]
        assert (group.rank, group.size) == (members.index(ranks.rank), len(members))
        found = np.zeros(len(members), np.int32)
        group.all_gather(found, np.array([ranks.rank], np.int32))
        assert found.tolist() == members


def check_groups_beside_each_other(ranks) -> float:
    """Two halves reduce a different number of times, from two threads each, and meet again."""
    half, control = ranks.split(ranks.rank % 2), ranks.split(0)
    results = []

    def follow():
        for i in range(50):
            x = np.array([i], np.int32)
            control.broadcast(x, 0)
            results.append(int(x[0]))

    thread = threading.Thread(target=follow)
    thread.start()
    total = np.ones(3, np.float32)
    for _ in range(5 + ranks.rank % 2):
        half.all_reduce(total)
    thread.join()
    ranks.barrier()
    assert results == list(range(50))
    return float(total[0])


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
