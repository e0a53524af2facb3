"""Logits from position 0 to four times the original context, prompt and generated tokens, against transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from longcat import _testing as testing  # noqa: E402

from oracle.cases import assert_close  # noqa: E402
from oracle.hf import HfModel  # noqa: E402
from reference.model import ReferenceModel  # noqa: E402
from support.checkpoints import VARIANTS, make_checkpoint, random_token_ids  # noqa: E402

pytestmark = pytest.mark.oracle

ORIGINAL = 64


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kv_cache_dtype", ["f32"])
@pytest.mark.parametrize("generated_from", [0, 100, 4 * ORIGINAL])
def test_logits_to_four_times_the_original_context(tmp_path, seed, kv_cache_dtype, generated_from):
    """Tokens from `generated_from` on are computed one by one as generated ones, those before in odd chunks."""
    yarn = {
        **VARIANTS["yarn_mscale"]["config_overrides"]["rope_scaling"],
        "factor": 8.0,
        "mscale": 1,
        "mscale_all_dim": 1,
    }
    yarn["original_max_position_embeddings"] = ORIGINAL
    config = make_checkpoint(
        tmp_path, seed=seed, config_overrides={"rope_scaling": yarn, "max_position_embeddings": 8 * ORIGINAL}
    )
    token_ids = random_token_ids(seed, 4 * ORIGINAL + 1, config["vocab_size"])
    blocks = [3, 1, 5, 2, 4]
    model = testing.Model(str(tmp_path), "f32", kv_cache_dtype=kv_cache_dtype)
    logits, position = [], 0
    while position < len(token_ids):
        generated = position >= generated_from
        count = 1 if generated else min(37, generated_from - position, len(token_ids) - position)
        chunk = (blocks, position, token_ids[position : position + count])
        logits.append(model.forward([chunk], num_generated=int(generated)))
        position += count
    expected = HfModel(tmp_path).logits(token_ids)
    gaps = ReferenceModel(tmp_path).trace(token_ids).router_gaps
    assert_close(np.concatenate(logits), expected, gaps, f"generated from {generated_from}, seed {seed}")
