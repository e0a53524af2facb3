"""Sparse attention's operations on the CUDA backend: index keys, selections, and attention to a selection."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.devices import DEVICES, EMULATED, EMULATED_REVERSED, needs_gpu
from support.tolerances import BF16_OPS, F32_TRANSCENDENTAL, FP8_STORE

pytestmark = pytest.mark.device

CPU = testing.DeviceOps("cpu")
BF16_DEVICES = [EMULATED, EMULATED_REVERSED, pytest.param("cuda", marks=needs_gpu)]
PUBLISHED = (16, 128)  # index_n_heads, index_head_dim: on tensor cores, where queries and keys are bf16


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x):
    """To bf16, to the nearest even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def index_case(chunks, heads, dim, rule, stored):
    """chunks: (positions before, tokens) of each sequence, whose blocks are its own."""
    batch, block = [], 1
    for start, count in chunks:
        blocks = -(-(start + count) // 64)
        batch.append((list(range(block, block + blocks))[::-1], start, [0] * count))
        block += blocks
    keys, tokens = sum(start + count for start, count in chunks), sum(count for _, count in chunks)
    return {
        "chunks": batch,
        "num_blocks": block,
        "num_generated": 0,
        "k": normal(keys, dim),
        "norm_weight": 1 + 0.1 * normal(dim, seed=1),
        "inv_freq": (100.0 ** (-np.arange(min(dim, 64) // 2) / dim)).astype(np.float32),
        "q": rounded(normal(tokens, heads, dim, seed=2)),
        "head_weights": normal(tokens, heads, seed=3),
        "rule": rule,
        "scale": 0.1,
        "stored": stored,
    }


def stored_keys(case, found):
    """[blocks, 64, dim] of the middle one of three sets."""
    dim = case["k"].shape[1]
    values = found.view(np.float32) if case["stored"] == "f32" else found.view(np.uint16).astype(np.uint32) << 16
    return values.view(np.float32).reshape(case["num_blocks"], 3 * 64, dim)[:, 64:128]


# Sequences and rules: positions on both sides of topk, several sequences, and a rule that leaves no choice.
SHAPES = [(3, 10, "f32"), (4, 16, "bf16"), (*PUBLISHED, "bf16")]
INDEX_CASES = [
    (chunks, rule, *shape)
    for shape in SHAPES
    for chunks, rule in [
        ([(0, 90)], [24, 2, 8]),
        ([(40, 3), (63, 1), (20, 4), (130, 2)], [64, 16, 20]),
        ([(0, 30)], [12, 0, 12]),
    ]
] + [([(2046, 5)], [2048, 16, 1024], *PUBLISHED, "bf16")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunks,rule,heads,dim,stored", INDEX_CASES, ids=str)
def test_selections_are_the_best_of_the_scores(device, chunks, rule, heads, dim, stored):
    case, ops = index_case(chunks, heads, dim, rule, stored), testing.DeviceOps(device)
    selected, found = ops.select_positions(**case)
    keys = stored_keys(case, found)
    expected_keys = stored_keys(case, CPU.select_positions(**case)[1])
    written = np.isfinite(expected_keys).all(axis=2)
    assert np.array_equal(written, np.isfinite(keys).all(axis=2))  # the other slots hold NaN still
    tolerance = 20 * F32_TRANSCENDENTAL if ops.activation_dtype() == "F32" and stored == "f32" else BF16_OPS
    assert np.abs(keys - expected_keys)[written].max() <= tolerance * np.abs(expected_keys[written]).max()

    topk, init, local = rule
    row = 0
    for blocks, start, tokens in case["chunks"]:
        own = np.concatenate([keys[block] for block in blocks]).astype(np.float64)
        for p in range(start, start + len(tokens)):
            if p < topk:
                assert (selected[row] == -1).all()
            else:
                free = np.arange(init, p + 1 - local)
                products = np.maximum(case["q"][row].astype(np.float64) @ own[free].T, 0)
                scores = case["head_weights"][row] @ products
                chosen = np.isin(free, selected[row])
                assert selected[row].tolist() == sorted({*range(init), *free[chosen], *range(p + 1 - local, p + 1)})
                assert len(selected[row]) == topk
                gap = 1e-5 * np.abs(scores).max()
                assert not chosen.any() or scores[chosen].min() >= scores[~chosen].max() - gap
            row += 1


@pytest.mark.parametrize("device", BF16_DEVICES)
@pytest.mark.parametrize("heads,dim", [(4, 16), PUBLISHED], ids=str)
def test_selections_depend_on_nothing_else(device, heads, dim):
    """Neither on the other tokens of the step nor on the order of blocks; generated tokens are as prompt tokens."""
    case = index_case([(50, 12), (100, 2)], heads, dim, [40, 4, 9], "bf16")
    name = device if device == "cuda" else EMULATED
    expected, keys = testing.DeviceOps(name).select_positions(**case)
    ops = testing.DeviceOps(device)
    found, found_keys = ops.select_positions(**{**case, "num_generated": 1})
    assert np.array_equal(found, expected) and np.array_equal(found_keys, keys)
    blocks, _, _ = case["chunks"][0]
    for row, count in ((0, 1), (3, 5), (7, 5)):
        alone = {
            "chunks": [(blocks, 50 + row, [0] * count)],
            "k": case["k"][: 50 + row + count],
            "q": case["q"][row : row + count],
            "head_weights": case["head_weights"][row : row + count],
        }
        assert np.array_equal(ops.select_positions(**{**case, **alone})[0], expected[row : row + count])


@pytest.mark.parametrize("device", DEVICES)
def test_extended_selections(device):
    rng = np.random.default_rng(0)
    for num_rows, width in ((1, 5), (9, 300), (20, 257)):
        selected = rng.integers(0, 1000, (num_rows + 4, width)).astype(np.int32)
        rows = np.sort(rng.choice(num_rows + 4, num_rows, replace=False)).astype(np.int32)
        positions = rng.integers(0, 1000, num_rows).astype(np.int32)
        found = testing.DeviceOps(device).extend_selection(selected, rows, positions)
        expected = selected.copy()
        expected[:num_rows, :-1] = selected[rows, :-1]
        expected[:num_rows, -1] = positions
        assert np.array_equal(found, expected)


def random_lists(chunks, topk):
    """Ascending visible positions of each token, its own among them; nonsense where a token has no list."""
    rng, rows = np.random.default_rng(5), []
    for _, start, tokens in chunks:
        for p in range(start, start + len(tokens)):
            chosen = np.append(rng.choice(p, topk - 1, replace=False), p) if p >= topk else [2**30] * topk
            rows.append(np.sort(chosen))
    return np.array(rows, np.int32)


def attention_case(lengths, generated, heads, latent, rope):
    nope, v, tokens, chunks, block = 8, 5, sum(lengths), [], 1
    for length in lengths:
        blocks = -(-length // 64)
        chunks.append((list(range(block, block + blocks))[::-1], 0, [0] * length))
        block += blocks
    case = {
        "chunks": chunks,
        "num_blocks": block,
        "kv_a": normal(tokens, latent + rope),
        "norm_weight": normal(latent, seed=1),
        "inv_freq": (100.0 ** (-np.arange(rope // 2) / rope)).astype(np.float32),
        "generated": generated,
        "q": normal(tokens, heads, (latent if generated else nope) + rope, seed=2),
        "q_a": normal(tokens, 8, seed=5),
        "scale": 0.02 if latent > 100 else 0.3,
    }
    if not generated:
        case["k_up"] = normal(heads * latent, nope, seed=3) * latent**-0.5
        case["v_up"] = normal(heads * v, latent, seed=4) * latent**-0.5
    return case


@pytest.mark.parametrize("device", [*DEVICES, EMULATED_REVERSED])
@pytest.mark.parametrize("cache_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize("generated", [True, False], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    "lengths,topk,heads,latent,rope",
    [([140, 5, 30], 29, 9, 24, 6), ([140], 129, 3, 8, 2), ([72, 3], 65, 16, 512, 64)],
    ids=["short lists", "two pieces", "published"],
)
def test_attention_to_lists(device, cache_dtype, generated, lengths, topk, heads, latent, rope):
    case, ops = attention_case(lengths, generated, heads, latent, rope), testing.DeviceOps(device)
    lists = random_lists(case["chunks"], topk)
    found, _, _ = ops.attention(cache_dtype=cache_dtype, **case, selected=lists)
    dense, _, _ = ops.attention(cache_dtype=cache_dtype, **case)
    expected, _, _ = CPU.attention(cache_dtype=cache_dtype, **case, selected=lists)
    has_list = lists[:, 0] < 2**30
    assert has_list.any() and np.array_equal(found[~has_list], dense[~has_list])
    scale = np.abs(expected).max(axis=(1, 2))
    # A latent that lies between two codes of e4m3 may get the other one.
    tolerance = FP8_STORE if cache_dtype == "fp8" else BF16_OPS
    assert (np.abs(found - expected).max(axis=(1, 2)) <= 1.2 * tolerance * scale).all()
    assert (np.abs(dense - expected).max(axis=(1, 2)) > 0.05 * scale)[has_list].any()
