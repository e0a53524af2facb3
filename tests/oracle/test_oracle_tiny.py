"""bf16 on the trained example: the engine must be at least as close to fp32 as transformers is."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
longcat = pytest.importorskip("longcat")
from tokenizers import Tokenizer  # noqa: E402

from oracle.cases import MAX_ABS  # noqa: E402
from oracle.hf import HfModel  # noqa: E402
from reference.model import ReferenceModel  # noqa: E402

pytestmark = pytest.mark.oracle

TESTS = Path(__file__).parents[1]
TINY = TESTS.parent / "examples" / "longcat-tiny"
WINDOW = 512  # [tokens] a forward pass


def windows() -> list[list[int]]:
    """tests/data/stories.txt as token ids, in windows of WINDOW; the incomplete last one is kept."""
    text = (TESTS / "data" / "stories.txt").read_text(encoding="utf-8")
    token_ids = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(text).ids
    return [token_ids[i : i + WINDOW] for i in range(0, len(token_ids), WINDOW)]


def closeness(logits: list[torch.Tensor], exact: list[torch.Tensor]) -> tuple[float, float]:
    """Share of equal first choices, and mean KL(exact || logits) [nats], over all positions."""
    p, q = torch.cat(exact).double().log_softmax(-1), torch.cat(logits).double().log_softmax(-1)
    return (p.argmax(-1) == q.argmax(-1)).double().mean().item(), (p.exp() * (p - q)).sum(-1).mean().item()


def test_bf16_is_as_close_to_fp32_as_transformers():
    prompts = windows()
    model, engine = HfModel(TINY), longcat.Engine(str(TINY), device="cpu", dtype="bf16")
    exact = [model.logits(prompt) for prompt in prompts]
    published = HfModel(TINY, torch.bfloat16)
    hf_top1, hf_kl = closeness([published.logits(prompt).float() for prompt in prompts], exact)
    outputs = [torch.from_numpy(np.array(np.from_dlpack(engine.forward(prompt)))) for prompt in prompts]
    top1, kl = closeness(outputs, exact)
    print(f"{sum(map(len, prompts))} tokens, bf16 against fp32 of transformers")
    print(f"transformers: top-1 agreement {hf_top1:.4%}, mean KL {hf_kl:.3e}")
    print(f"engine:       top-1 agreement {top1:.4%}, mean KL {kl:.3e}")
    assert top1 >= hf_top1
    assert kl <= hf_kl


def test_fp32_is_as_close_to_fp64_as_transformers():
    """No bound at each position: the trained router often picks its last expert among some of next to no weight.

    Two correct f32 programs then pick differently, and attention carries the small difference on.
    """
    prompt = windows()[0]
    exact = ReferenceModel(TINY, torch.float64).forward(prompt).numpy()
    published = HfModel(TINY).logits(prompt).numpy()
    found = np.from_dlpack(longcat.Engine(str(TINY), device="cpu", dtype="f32").forward(prompt))
    ours, theirs = np.abs(found - exact).max(axis=1), np.abs(published - exact).max(axis=1)
    print(f"fp32 against fp64, {len(prompt)} tokens, largest difference of a position, median and max:")
    print(f"engine {np.median(ours):.2e} {ours.max():.2e}, transformers {np.median(theirs):.2e} {theirs.max():.2e}")
    assert np.median(ours) <= np.median(theirs)
    assert ours.max() <= 1.5 * theirs.max()
    assert np.median(np.abs(found - published).max(axis=1)) <= MAX_ABS
