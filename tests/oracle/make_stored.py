"""Writes tests/data/*.npz from transformers and the reference. In tests/: `python -m oracle.make_stored`."""

from __future__ import annotations

import json
import tempfile

import numpy as np
import torch

from oracle.cases import WIDE, assert_close
from oracle.hf import HfModel
from oracle.sampling import PARAMETERS, hf_probabilities, random_logits
from reference.model import ReferenceModel
from reference.stored import DATA
from support.checkpoints import VARIANTS, make_checkpoint, random_token_ids

# name -> (arguments of make_checkpoint, number of tokens)
RECIPES = {
    "lite": ({"seed": 0, **VARIANTS["lite"]}, 192),
    "lite_bf16_shards": ({"seed": 1, "dtype": "BF16", "shards": 3, "mtp": True, **VARIANTS["lite"]}, 96),
    "lite_fp8": ({"seed": 2, "dtype": "FP8", "config_overrides": WIDE}, 64),
    "flash_chat": ({"seed": 3, **VARIANTS["flash_chat"]}, 96),
    "n3": ({"seed": 4, **VARIANTS["n3"]}, 64),
    "n5": ({"seed": 5, **VARIANTS["n5"]}, 96),
    "odd": ({"seed": 6, **VARIANTS["odd"]}, 128),
    "odd_small": ({"seed": 7, **VARIANTS["odd_small"]}, 96),
    "yarn_ramp": ({"seed": 8, **VARIANTS["yarn_ramp"]}, 160),
    "yarn_mscale": ({"seed": 9, **VARIANTS["yarn_mscale"]}, 96),
    "many_experts": ({"seed": 10, **VARIANTS["many_experts"]}, 64),
}
MTP_RECIPES = {
    "lite": ({"seed": 11, "mtp": True, **VARIANTS["lite"]}, 96),
    "lite_fp8": ({"seed": 12, "mtp": True, "dtype": "FP8", "config_overrides": WIDE}, 80),
    "lite_fp8_whole": ({"seed": 15, "mtp": True, "dtype": "FP8", "config_overrides": WIDE | {"hidden_size": 384}}, 60),
    "odd": ({"seed": 13, "mtp": True, **VARIANTS["odd"]}, 70),
    "yarn_ramp": ({"seed": 14, "mtp": True, "dtype": "BF16", **VARIANTS["yarn_ramp"]}, 150),
}
MTP_DEPTHS = 3
SAMPLING_SEEDS = range(4)


def write_logits(name: str, recipe: dict, tokens: int) -> None:
    """Computes and stores one StoredCase."""
    with tempfile.TemporaryDirectory() as folder:
        config = make_checkpoint(folder, **recipe)
        token_ids = random_token_ids(recipe["seed"], tokens, config["vocab_size"], config["eos_token_id"])
        logits = HfModel(folder).logits(token_ids).numpy()
        trace = ReferenceModel(folder).trace(token_ids)
    assert_close(trace.logits, logits, trace.router_gaps, name)
    positions = np.array([0, 1, 6, 23, 41, tokens // 2, tokens - 1], np.int32)
    np.savez_compressed(
        DATA / f"logits_{name}.npz",
        recipe=json.dumps(recipe),
        token_ids=np.array(token_ids, np.int32),
        logits=logits,
        ngram_ids=trace.ngram_ids.numpy(),
        gaps=trace.router_gaps.numpy(),
        latent_positions=positions,
        latents=trace.latents[:, positions].float().numpy(),
    )


def write_mtp(name: str, recipe: dict, tokens: int) -> None:
    """Computes and stores one StoredMtp."""
    with tempfile.TemporaryDirectory() as folder:
        config = make_checkpoint(folder, **recipe)
        token_ids = random_token_ids(recipe["seed"], tokens + 1, config["vocab_size"], config["eos_token_id"])
        model = ReferenceModel(folder)
    trace = model.trace(token_ids[:-1])
    out = model.mtp(trace.hidden, token_ids[1:])
    draft_ids = random_token_ids(recipe["seed"] + 100, MTP_DEPTHS, config["vocab_size"])
    hidden, next_ids, drafts = trace.hidden, token_ids[1:], []
    last = out[-1:]
    for draft_id in draft_ids:
        hidden, next_ids = torch.cat([hidden, last]), [*next_ids, draft_id]
        last = model.mtp(hidden, next_ids)[-1:]
        drafts.append(model.linear(last, "lm_head")[0])
    np.savez_compressed(
        DATA / f"mtp_{name}.npz",
        recipe=json.dumps(recipe),
        token_ids=np.array(token_ids, np.int32),
        gaps=trace.router_gaps.numpy(),
        logits=model.linear(out, "lm_head").float().numpy(),
        draft_ids=np.array(draft_ids, np.int32),
        draft_logits=torch.stack(drafts).float().numpy(),
    )


def write_sampling() -> None:
    """Stores what transformers' processors make of a few rows of logits."""
    rows = [random_logits(seed) for seed in SAMPLING_SEEDS]
    np.savez_compressed(
        DATA / "sampling.npz",
        parameters=json.dumps(PARAMETERS),
        logits=np.stack([logits for logits, _ in rows]),
        history=np.array([history for _, history in rows], np.int32),
        probabilities=np.array([[hf_probabilities(*row, **p) for p in PARAMETERS] for row in rows]),
    )


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    for case, (case_recipe, length) in RECIPES.items():
        write_logits(case, case_recipe, length)
    for case, (case_recipe, length) in MTP_RECIPES.items():
        write_mtp(case, case_recipe, length)
    write_sampling()
    total = sum(path.stat().st_size for path in DATA.glob("*.npz"))
    print(f"{len(list(DATA.glob('*.npz')))} files, {total / 1e3:.0f} kB")
