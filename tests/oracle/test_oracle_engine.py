"""The engine against transformers, with the checkpoints and the bar of the reference model's test."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
longcat = pytest.importorskip("longcat")
from oracle.cases import (  # noqa: E402
    VARIANT_SEEDS,
    assert_close,
    batch_prompts,
    make_case,
    make_stored_dtype_case,
)
from oracle.hf import HfModel  # noqa: E402
from reference.model import ReferenceModel  # noqa: E402

pytestmark = pytest.mark.oracle


def engine_logits(engine, token_ids) -> np.ndarray:
    """[T, vocab_size] float32."""
    return np.from_dlpack(engine.forward(token_ids))


@pytest.mark.parametrize(("variant", "seed"), VARIANT_SEEDS)
def test_logits(tmp_path, variant, seed):
    token_ids = make_case(tmp_path, variant, seed)
    expected = HfModel(tmp_path).logits(token_ids)
    gaps = ReferenceModel(tmp_path).trace(token_ids).router_gaps
    engine = longcat.Engine(str(tmp_path), device="cpu", dtype="f32")
    assert_close(engine_logits(engine, token_ids), expected, gaps, f"{variant} seed {seed}")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["BF16", "F16", "FP8"])
def test_stored_dtypes(tmp_path, dtype, seed):
    token_ids = make_stored_dtype_case(tmp_path, dtype, seed)
    gaps = ReferenceModel(tmp_path).trace(token_ids).router_gaps
    engine = longcat.Engine(str(tmp_path), device="cpu", dtype="f32")
    expected = HfModel(tmp_path).logits(token_ids)
    assert_close(engine_logits(engine, token_ids), expected, gaps, f"{dtype} seed {seed}")


@pytest.mark.parametrize("variant", ["lite", "flash_chat", "odd"])
def test_batch(tmp_path, variant):
    """One engine, prompts of different lengths in turn, against one padded batch in transformers."""
    make_case(tmp_path, variant, 0)
    reference = ReferenceModel(tmp_path)
    prompts = batch_prompts(reference.config)
    engine = longcat.Engine(str(tmp_path), device="cpu", dtype="f32")
    expected = torch.cat(HfModel(tmp_path).batch_logits(prompts))
    logits = np.concatenate([engine_logits(engine, prompt) for prompt in prompts])
    gaps = torch.cat([reference.trace(prompt).router_gaps for prompt in prompts], dim=1)
    assert_close(logits, expected, gaps, f"{variant} batch of {len(prompts)}")
