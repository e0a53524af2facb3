"""The reference model against transformers: float32 and float64, every shape, seeds 0..9."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from oracle.cases import (  # noqa: E402
    VARIANT_SEEDS,
    assert_close,
    batch_prompts,
    make_case,
    make_stored_dtype_case,
)
from oracle.hf import HfModel  # noqa: E402
from reference import ops  # noqa: E402
from reference.model import ReferenceModel  # noqa: E402
from support.checkpoints import VARIANTS  # noqa: E402

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(("variant", "seed"), VARIANT_SEEDS)
def test_logits(tmp_path, variant, seed):
    token_ids = make_case(tmp_path, variant, seed)
    expected = HfModel(tmp_path).logits(token_ids)
    exact = ReferenceModel(tmp_path, torch.float64)
    trace = exact.trace(token_ids)
    assert_close(trace.logits, expected, trace.router_gaps, f"{variant} seed {seed} float64")
    single = ReferenceModel(tmp_path, torch.float32).forward(token_ids)
    assert_close(single, expected, trace.router_gaps, f"{variant} seed {seed} float32")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["BF16", "F16", "FP8"])
def test_stored_dtypes(tmp_path, dtype, seed):
    token_ids = make_stored_dtype_case(tmp_path, dtype, seed)
    trace = ReferenceModel(tmp_path).trace(token_ids)
    assert_close(trace.logits, HfModel(tmp_path).logits(token_ids), trace.router_gaps, f"{dtype} seed {seed}")


@pytest.mark.parametrize("variant", ["lite", "flash_chat", "odd"])
def test_batch(tmp_path, variant):
    """Prompts of different lengths in one padded batch get the logits they get alone."""
    make_case(tmp_path, variant, 0)
    model, reference = HfModel(tmp_path), ReferenceModel(tmp_path)
    prompts = batch_prompts(reference.config)
    expected = torch.cat(model.batch_logits(prompts))
    traces = [reference.trace(prompt) for prompt in prompts]
    logits, gaps = torch.cat([t.logits for t in traces]), torch.cat([t.router_gaps for t in traces], dim=1)
    assert_close(logits, expected, gaps, f"{variant} batch of {len(prompts)}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_rope_and_router_constants(tmp_path, variant):
    """What logits may show only faintly: inverse frequencies, both YaRN factors, chosen experts."""
    token_ids = make_case(tmp_path, variant, 0)
    hf, reference = HfModel(tmp_path), ReferenceModel(tmp_path)
    rotary, attention = hf.model.model.rotary_emb, hf.model.model.layers[0].self_attn[0]
    np.testing.assert_allclose(ops.yarn_inv_freq(reference.config), rotary.inv_freq.numpy(), rtol=1e-6)
    assert ops.cos_sin_factor(reference.config) == pytest.approx(rotary.attention_scaling, rel=1e-12)
    assert ops.softmax_scale(reference.config) == pytest.approx(attention.scaling, rel=1e-12)

    chosen = []
    for layer in hf.model.model.layers:
        layer.mlp.router.register_forward_hook(lambda _, __, out: chosen.append(out[0]))
    hf.logits(token_ids)
    trace = reference.trace(token_ids)
    clear = trace.router_gaps > 1e-5
    for layer, experts in enumerate(chosen):
        ours, theirs = trace.selected_experts[layer].sort(-1).values, experts.sort(-1).values
        assert torch.equal(ours[clear[layer]], theirs[clear[layer]])


def test_tables_matter(tmp_path):
    """Zeroed N-gram tables change most predictions, so no comparison here can pass by ignoring them."""
    token_ids = make_case(tmp_path, "lite", 0)
    model = ReferenceModel(tmp_path)
    logits = model.forward(token_ids)
    for name, weight in model.weights.items():
        if ".embedders." in name:
            weight.zero_()
    zeroed = model.forward(token_ids)
    assert (logits.argmax(-1) == zeroed.argmax(-1)).double().mean() < 0.5
