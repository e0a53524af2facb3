"""Checks of collectives against numpy, which every transport passes."""

import threading

import numpy as np

from support.checkpoints import from_bf16, to_bf16

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
