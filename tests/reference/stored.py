"""Stored oracle results, so that tests can hold an implementation to transformers without torch. Numpy only.

`tests/oracle/make_stored.py` writes them; the checkpoints are made again from their recipes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from support.checkpoints import make_checkpoint

DATA = Path(__file__).parents[1] / "data"


def _fields_of(kind: str) -> Iterator[dict]:
    """Name, recipe and arrays of each `kind`_*.npz."""
    paths = sorted(DATA.glob(f"{kind}_*.npz"))
    if not paths:
        raise FileNotFoundError(f"no {kind}_*.npz in {DATA}")
    for path in paths:
        with np.load(path) as arrays:
            fields = {name: arrays[name] for name in arrays.files}
        recipe = json.loads(str(fields.pop("recipe")))
        yield {"name": path.stem.removeprefix(f"{kind}_"), "recipe": recipe, **fields}


@dataclass(frozen=True)
class StoredCase:
    """One checkpoint and prompt of T tokens with what the oracles computed; S = 2 * num_layers sub-layers."""

    name: str
    recipe: dict  # arguments of make_checkpoint
    token_ids: np.ndarray  # [T] int32
    logits: np.ndarray  # [T, vocab_size] float32, from transformers in fp32
    ngram_ids: np.ndarray  # [T, tables] int64; no columns without N-gram embedding
    gaps: np.ndarray  # [num_layers, T] float64 router gaps, as in reference.model.Trace
    latent_positions: np.ndarray  # [P] int32
    latents: np.ndarray  # [S, P, kv_lora_rank + qk_rope_head_dim] float32, of the float64 reference

    def make(self, folder: Path | str) -> dict:
        """Writes the checkpoint to `folder` and returns its config."""
        return make_checkpoint(folder, **self.recipe)

    def clear_positions(self, min_gap: float = 1e-5) -> np.ndarray:
        """[T] bool: positions whose experts rounding cannot change; logits are comparable there."""
        return self.gaps.min(axis=0) > min_gap


def stored_cases() -> list[StoredCase]:
    """All stored logit cases, by name. Raises FileNotFoundError when there are none."""
    return [StoredCase(**fields) for fields in _fields_of("logits")]


@dataclass(frozen=True)
class StoredMtp:
    """A checkpoint, T + 1 tokens, and the logits that its MTP layer comes to, from the float64 reference."""

    name: str
    recipe: dict  # arguments of make_checkpoint
    token_ids: np.ndarray  # [T + 1] int32
    gaps: np.ndarray  # [num_layers, T] router gaps of the trunk over the first T
    logits: np.ndarray  # [T, vocab_size] float32: row i from the hidden state of token i and from token i + 1
    draft_ids: np.ndarray  # [depths] int32: read on behind the last token, each with the layer's own hidden state
    draft_logits: np.ndarray  # [depths, vocab_size] float32


def stored_mtp() -> list[StoredMtp]:
    """All stored cases of the MTP layer, by name. Raises FileNotFoundError when there are none."""
    return [StoredMtp(**fields) for fields in _fields_of("mtp")]


@dataclass(frozen=True)
class StoredSampling:
    """Logits and the distributions transformers' processors make of them, one per entry of `parameters`."""

    logits: np.ndarray  # [vocab] float32
    history: Sequence[int]  # ids that the repetition penalty applies to
    parameters: list[dict]  # keyword arguments of reference.ops.sampling_probabilities
    probabilities: np.ndarray  # [len(parameters), vocab] float32


def stored_sampling() -> list[StoredSampling]:
    """All stored sampling cases."""
    with np.load(DATA / "sampling.npz") as arrays:
        parameters = json.loads(str(arrays["parameters"]))
        return [
            StoredSampling(logits, history.tolist(), parameters, probabilities)
            for logits, history, probabilities in zip(
                arrays["logits"], arrays["history"], arrays["probabilities"], strict=True
            )
        ]
