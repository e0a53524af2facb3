"""Bits of a token's result depend on it and its history only: chunks, batches, threads and blocks change nothing."""

import numpy as np
import pytest
from longcat import _testing as testing

from support.checkpoints import VARIANTS, make_checkpoint, random_token_ids

TOKENS = 150  # more than two blocks and one attention piece


@pytest.fixture(
    scope="module",
    params=[("lite", "f32"), ("lite", "bf16"), ("odd", "f32"), ("flash_chat", "bf16")],
    ids="-".join,
)
def setup(request, tmp_path_factory):
    """(folder, dtype, token ids, logits, latents) of a prompt computed whole, alone, on one thread."""
    variant, dtype = request.param
    folder = str(tmp_path_factory.mktemp("model"))
    config = make_checkpoint(folder, seed=1, **VARIANTS[variant])
    token_ids = random_token_ids(4, TOKENS, config["vocab_size"])
    model = testing.Model(folder, dtype)
    logits = model.forward([([1, 2, 3], 0, token_ids)])
    return folder, dtype, token_ids, logits, latents_of(model, config, [1, 2, 3]), config


def run_chunks(model, blocks, token_ids, sizes):
    logits, start = [], 0
    for i in range(len(token_ids)):
        size = sizes[min(i, len(sizes) - 1)]
        if start >= len(token_ids):
            break
        logits.append(model.forward([(blocks, start, token_ids[start : start + size])]))
        start += size
    return np.concatenate(logits)


def num_sub_layers(config):
    return 2 * config["num_layers"]


def latents_of(model, config, blocks, tokens=TOKENS):
    return np.stack([model.latents(s, blocks, tokens) for s in range(num_sub_layers(config))])


RANDOM_SIZES = np.random.default_rng(8).integers(1, 40, TOKENS).tolist()


@pytest.mark.parametrize(
    "sizes", [[1], [3], [64], [65], [TOKENS - 1], RANDOM_SIZES], ids=["1", "3", "64", "65", "149", "random"]
)
def test_chunks_equal_whole(setup, sizes):
    folder, dtype, token_ids, logits, latents, config = setup
    model = testing.Model(folder, dtype)
    assert np.array_equal(run_chunks(model, [1, 2, 3], token_ids, sizes), logits)
    assert np.array_equal(latents_of(model, config, [1, 2, 3]), latents)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads(setup, threads):
    folder, dtype, token_ids, logits, latents, config = setup
    model = testing.Model(folder, dtype, num_threads=threads)
    assert np.array_equal(model.forward([([1, 2, 3], 0, token_ids)]), logits)
    assert np.array_equal(latents_of(model, config, [1, 2, 3]), latents)


@pytest.mark.parametrize("neighbours", [1, 6])
def test_in_a_batch_equals_alone(setup, neighbours):
    """In any place among others, whole and token by token, in scattered blocks of a poisoned cache."""
    folder, dtype, token_ids, logits, latents, config = setup
    model = testing.Model(folder, dtype, num_threads=2, max_tokens=2048, num_blocks=64)
    model.poison()
    others = [
        ([10 + 4 * n + i for i in range(4)], 0, random_token_ids(n, 40 + 31 * n, config["vocab_size"]))
        for n in range(neighbours)
    ]
    blocks = [50, 7, 61]
    for place in (0, neighbours // 2, neighbours):
        chunks = others[:place] + [(blocks, 0, token_ids)] + others[place:]
        first = sum(len(ids) for _, _, ids in chunks[:place])
        found = model.forward(chunks)[first : first + TOKENS]
        assert np.array_equal(found, logits)
        assert np.array_equal(latents_of(model, config, blocks), latents)

    model.poison()
    cut = TOKENS - 5
    model.forward([(blocks, 0, token_ids[:cut])])
    for position in range(cut, TOKENS):
        chunk = (blocks, position, [token_ids[position]])
        found = model.forward([*others, chunk])[-1]
        assert np.array_equal(found, logits[position])
    assert np.array_equal(latents_of(model, config, blocks), latents)


def test_last_token_again_gives_the_same(setup):
    """Recomputing a stored token overwrites it with the same bits."""
    folder, dtype, token_ids, logits, latents, config = setup
    model = testing.Model(folder, dtype)
    model.forward([([1, 2, 3], 0, token_ids)])
    for start in (TOKENS - 1, 64, 63, 0):
        assert np.array_equal(model.forward([([1, 2, 3], start, token_ids[start:])]), logits[start:])
    assert np.array_equal(latents_of(model, config, [1, 2, 3]), latents)
