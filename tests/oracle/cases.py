"""The checkpoints and prompts of the oracle tests, and the bar that logits have to meet."""

from __future__ import annotations

import numpy as np

from support.checkpoints import VARIANTS, make_checkpoint, random_token_ids

SEEDS = range(10)
TOKENS = 160  # longer than every original_max_position_embeddings of VARIANTS
MAX_ABS = 1e-4  # [logits] fp32 against fp32
MIN_GAP = 1e-5  # router gaps below may flip an expert between two correct fp32 programs
MAX_EXCLUDED = 0.01  # share of positions excused by MIN_GAP

# FP8 matrices of more than one 128 x 128 block, some of them partial
WIDE = {"hidden_size": 192, "ffn_hidden_size": 144, "q_lora_rank": 40}

VARIANT_SEEDS = [(variant, seed) for variant in VARIANTS for seed in SEEDS]


def make_case(folder, variant: str, seed: int) -> list[int]:
    """Writes the checkpoint of (variant, seed) to `folder`; returns its prompt."""
    config = make_checkpoint(folder, seed=seed, **VARIANTS[variant])
    return random_token_ids(seed, TOKENS, config["vocab_size"], config["eos_token_id"])


def make_stored_dtype_case(folder, dtype: str, seed: int) -> list[int]:
    """Writes a sharded checkpoint of `dtype` with all its extras to `folder`; returns its prompt."""
    make_checkpoint(folder, seed=seed, dtype=dtype, shards=3, mtp=True, config_overrides=WIDE)
    return random_token_ids(seed, 100)


def batch_prompts(config) -> list[list[int]]:
    """Prompts of different lengths, one of a single token."""
    lengths = (97, 1, TOKENS, 33)
    return [random_token_ids(seed, length, config["vocab_size"]) for seed, length in enumerate(lengths)]


def assert_close(logits, expected, router_gaps, label: str) -> None:
    """Holds logits to MAX_ABS where router gaps are clear in every layer, and prints the figures.

    Args:
        logits, expected: [T, vocab].
        router_gaps: [num_layers, T] of the float64 reference.
    Raises:
        AssertionError: names the worst place, or too many excused positions.
    """
    logits, expected = np.asarray(logits, np.float64), np.asarray(expected, np.float64)
    clear = np.asarray(router_gaps).min(axis=0) > MIN_GAP
    excluded = 1 - clear.mean()
    assert logits.shape == expected.shape
    assert np.isfinite(logits).all(), f"{label}: {np.sum(~np.isfinite(logits))} logits are not finite"
    difference = np.abs(logits - expected) * clear[:, None]
    position, token = np.unravel_index(difference.argmax(), difference.shape)
    print(f"{label}: max abs {difference.max():.2e}, excluded {excluded:.2%}, logit std {expected.std():.2f}")
    assert excluded <= MAX_EXCLUDED, f"{label}: {excluded:.2%} of positions have router gaps <= {MIN_GAP}"
    assert difference.max() <= MAX_ABS, (
        f"{label}: position {position}, token {token}: {logits[position, token]:.6f}, "
        f"expected {expected[position, token]:.6f}"
    )
