"""Word embeddings and N-gram tables on every device."""

import numpy as np
import pytest

from support.checkpoints import from_bf16, to_bf16
from support.compare import assert_rows_close
from support.device_cases import CPU, ngram_tables, normal, random_steps

pytestmark = pytest.mark.device


@pytest.mark.parametrize("hidden,width", [(24, 12), (64, 64)])
def test_embed(ops, tolerance, hidden, width):
    ids, rows = np.array([3, 0, 3, 10], np.int32), normal(4, width)
    word, projection = to_bf16(normal(11, hidden, seed=1)), to_bf16(normal(hidden, width, seed=2))
    assert_rows_close(
        ops.embed(ids, word, rows, projection, 1 / 7), CPU.embed(ids, word, rows, projection, 1 / 7), tolerance
    )
    assert_rows_close(ops.embed(ids, word, rows, None, 0.5), CPU.embed(ids, word, rows, None, 0.5), tolerance)


def test_words_of_shares_add_up(ops, tolerance):
    """Each of two ranks has some words and the projection of some tables."""
    ids, rows = np.array([3, 0, 3, 10, 7, 8], np.int32), normal(6, 40)
    word, projection = to_bf16(normal(11, 24, seed=1)), to_bf16(normal(24, 40, seed=2))
    whole = CPU.embed(ids, word, rows, projection, 1 / 7)
    first = ops.embed(ids, word[:8], rows[:, :16].copy(), projection[:, :16].copy(), 1 / 7)
    second = ops.embed(ids, word[8:], rows[:, 16:].copy(), projection[:, 16:].copy(), 1 / 7, first_word=8)
    assert_rows_close(first + second, whole, 2 * tolerance)
    alone = ops.embed(ids, word[8:], rows, None, 0.5, first_word=8)
    assert not alone[[0, 1, 2, 4]].any() and alone[[3, 5]].any()


@pytest.mark.parametrize("max_order,splits", [(1, 0), (2, 1), (4, 2), (4, 4), (16, 1)])
def test_ngram_lookup_is_exact(ops, max_order, splits):
    rng = np.random.default_rng(max_order)
    tables = ngram_tables(max_order, splits, dim=8)
    for _ in range(5):
        steps = random_steps(rng, vocab=97, eos=2)
        found = ops.ngram_lookup(steps, tables, 97, max_order, splits, 2, 9)
        expected = CPU.ngram_lookup(steps, tables, 97, max_order, splits, 2, 9)
        for a, b in zip(found, expected, strict=True):
            assert np.array_equal(a, b)


def test_ngram_rows_of_some_tables(ops):
    """Ids are of all tables, rows of those that are here, perhaps none."""
    tables = ngram_tables(4, 4, dim=8)
    steps = random_steps(np.random.default_rng(1), vocab=97, eos=2)
    ids, rows, lane = CPU.ngram_lookup(steps, tables, 97, 4, 4, 2, 9)
    moduli = [len(table) for table in tables]
    for first, last in [(0, 5), (5, 12), (7, 7)]:
        found = ops.ngram_lookup(steps, tables[first:last], 97, 4, 4, 2, 9, moduli, first)
        assert np.array_equal(found[0], ids) and np.array_equal(found[2], lane)
        if first < last:
            assert np.array_equal(found[1], rows[:, 8 * first : 8 * last])


@pytest.mark.parametrize("first,begin,last,end", [(0, 0, 0, 100), (3, 7, 3, 8), (2, 150, 3, 1), (4, 200, 11, 90)])
def test_ngram_rows_of_parts_of_tables(ops, first, begin, last, end):
    """From row `begin` of table `first` to before row `end` of table `last`: zeros for all others."""
    tables = ngram_tables(4, 4, dim=8)
    moduli = [len(table) for table in tables]
    steps = random_steps(np.random.default_rng(first), vocab=97, eos=2)
    ids, rows, lane = CPU.ngram_lookup(steps, tables, 97, 4, 4, 2, 9)
    ranges = [(begin if t == first else 0, end if t == last else moduli[t]) for t in range(first, last + 1)]
    parts = [tables[first + i][low:high] for i, (low, high) in enumerate(ranges)]
    found = ops.ngram_lookup(steps, parts, 97, 4, 4, 2, 9, moduli, first, begin)
    assert np.array_equal(found[0], ids) and np.array_equal(found[2], lane)
    for i, (low, high) in enumerate(ranges):
        here = (low <= ids[:, first + i]) & (ids[:, first + i] < high)
        whole = rows[:, 8 * (first + i) : 8 * (first + i + 1)]
        assert np.array_equal(found[1][:, 8 * i : 8 * (i + 1)], np.where(here[:, None], whole, 0))


def test_ngram_rows_elsewhere_are_not_read(ops):
    """Rows far beyond the memory of a few that are here, in tables of the longest that ids can name."""
    moduli = [2**31 - 1 - 2 * t for t in range(3)]
    steps = [([([1], 0, list(range(3, 60)))], 0)]
    parts = [np.full((3, 512), 1, np.float32) for _ in range(2)]
    ids, rows, _ = ops.ngram_lookup(steps, parts, 131072, 4, 1, 2, 2, moduli, 0, 2**30)
    assert (np.abs(ids[1:, :2] - 2**30) > 2**20).mean() > 0.5 and not rows.any()


def test_ngram_ids_of_the_real_model(ops):
    """The real row counts, with tables of one value; vectors computed by hand from the definition."""
    moduli = [10223617 + 2 * t for t in range(12)]
    tables = [np.zeros((m, 1), np.uint16) for m in moduli]
    ids, _, _ = ops.ngram_lookup([([([1], 0, [131071, 131070, 131069, 131068])], 0)], tables, 131072, 4, 4, 2, 2)
    assert ids[3].tolist() == [
        3930476, 3927116, 3923756, 3920396, 8183666, 7293911, 6404328, 5514917, 8016838, 4204349, 2534734, 3007981,
    ]  # fmt: skip
    ids, _, _ = ops.ngram_lookup([([([1], 0, [10, 11, 2, 14, 15, 16])], 0)], tables, 131072, 4, 4, 2, 2)
    assert ids[2, 8:].tolist() == [2204702, 2171094, 2137486, 2103878]  # an EOS looks back
    assert ids[3].tolist() == [14] * 12  # and nothing looks past it


@pytest.mark.parametrize("dim", [8, 24, 7])
@pytest.mark.parametrize("format", ["bf16", "f32"])
def test_rows_of_tables_are_copied_exactly(ops, dim, format):
    """By 16 bytes where rows are aligned to them, else a value at a time."""
    tables = ngram_tables(4, 2, dim)
    if format == "f32":
        tables = [from_bf16(table) for table in tables]
    steps = random_steps(np.random.default_rng(dim), vocab=97, eos=2)
    for a, b in zip(*(o.ngram_lookup(steps, tables, 97, 4, 2, 2, 9) for o in (ops, CPU)), strict=True):
        assert np.array_equal(a, b)
