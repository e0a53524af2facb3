"""Whole-model logits against stored results of transformers, and what each part of the model contributes."""

import json
import struct
from pathlib import Path

import longcat
import numpy as np
import pytest
from longcat import _testing as testing

from reference.stored import stored_cases
from support.checkpoints import read_safetensors, write_safetensors
from support.tolerances import F32_TRANSCENDENTAL, INT8_LATENT_NATS, LOGITS, ROUTER_GAP

CASES = stored_cases()
MAX_EXCLUDED = 0.01  # share of positions that a router near-tie may excuse


def assert_logits_close(logits, case):
    clear = case.clear_positions(ROUTER_GAP)
    difference = np.abs(logits - case.logits).max(axis=1)
    print(f"{case.name}: max abs {difference[clear].max():.2e}, excluded {1 - clear.mean():.2%}")
    assert 1 - clear.mean() <= MAX_EXCLUDED
    assert difference[clear].max() <= LOGITS, f"worst at position {np.argmax(difference * clear)}"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_logits_equal_transformers(case, tmp_path):
    case.make(tmp_path)
    with longcat.Engine(tmp_path, dtype="f32") as engine:
        assert_logits_close(engine.forward(case.token_ids), case)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_ngram_ids_and_latents_equal_the_reference(case, tmp_path):
    case.make(tmp_path)
    model = testing.Model(str(tmp_path), "f32")
    blocks = list(range(1, 2 + len(case.token_ids) // 64))
    model.forward([(blocks, 0, case.token_ids.tolist())])
    if case.ngram_ids.size:
        assert np.array_equal(model.last_ngram_ids(), case.ngram_ids)
    assert model.lane(blocks, len(case.token_ids)) == case.token_ids.tolist()
    for sub_layer, expected in enumerate(case.latents):
        # A near-tie in an earlier layer excuses the positions it may have changed.
        clear = (case.gaps[: (sub_layer + 1) // 2].min(axis=0, initial=np.inf) > ROUTER_GAP)[case.latent_positions]
        found = model.latents(sub_layer, blocks, len(case.token_ids))[case.latent_positions]
        error = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
        assert error[clear].max() <= 5 * F32_TRANSCENDENTAL, f"sub-layer {sub_layer}"


def zero_tensors(folder: Path, fragment: str) -> int:
    """Overwrites every tensor whose name holds `fragment` with zeros; returns how many there were."""
    count = 0
    for path in folder.glob("*.safetensors"):
        tensors = read_safetensors(path)
        for name, (dtype, shape, raw) in tensors.items():
            if fragment in name:
                tensors[name] = (dtype, shape, bytes(len(raw)))
                count += 1
        write_safetensors(path, tensors)
    return count


def test_logits_depend_on_the_ngram_tables(tmp_path):
    case = next(c for c in CASES if c.name == "lite")
    case.make(tmp_path)
    assert zero_tensors(tmp_path, "ngram_embeddings.embedders") == 12
    with longcat.Engine(tmp_path, dtype="f32") as engine:
        assert np.abs(engine.forward(case.token_ids) - case.logits).max() > 100 * LOGITS


def test_tied_word_embeddings(tmp_path):
    case = next(c for c in CASES if c.name == "lite")
    config = case.make(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = read_safetensors(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(path, tensors)
    with longcat.Engine(tmp_path, dtype="f32") as engine:
        expected = engine.forward(case.token_ids)
    del tensors["lm_head.weight"]
    write_safetensors(path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with longcat.Engine(tmp_path, dtype="f32") as engine:
        assert np.array_equal(engine.forward(case.token_ids), expected)


@pytest.mark.parametrize("padding", [1, 2, 3])
def test_tensors_that_are_not_aligned(tmp_path, padding):
    """A header of odd length moves every tensor off its natural alignment; the numbers stay."""
    for case in [c for c in CASES if c.name in ("lite", "lite_fp8", "lite_bf16_shards")]:
        folder = tmp_path / case.name
        case.make(folder)
        with longcat.Engine(folder, dtype="f32") as engine:
            expected = engine.forward(case.token_ids)
        for path in folder.glob("*.safetensors"):
            raw = path.read_bytes()
            (length,) = struct.unpack("<Q", raw[:8])
            path.write_bytes(
                struct.pack("<Q", length + padding) + raw[8 : 8 + length] + b" " * padding + raw[8 + length :]
            )
        with longcat.Engine(folder, dtype="f32") as engine:
            assert np.array_equal(engine.forward(case.token_ids), expected)


def test_weights_stay_in_the_file(tmp_path):
    case = next(c for c in CASES if c.name == "lite_bf16_shards")
    case.make(tmp_path)
    for dtype in ("bf16", "f32"):  # bf16 is exact in f32: nothing to convert
        formats = testing.Model(str(tmp_path), dtype).weight_formats()
        assert formats["ngram_table"] == formats["q_b_proj"] == formats["expert_gate_proj"] == "bf16@disk"
        assert formats["classifier"].startswith("f32")
        assert formats["k_up"] == formats["ngram_projection"] == "bf16_x8@device"  # made at load, so packed


def test_f32_weights_are_rounded_under_bf16(random_checkpoint):
    formats = testing.Model(random_checkpoint, "bf16").weight_formats()
    assert formats["q_b_proj"] == "bf16_x8@device"
    assert formats["ngram_table"] == "f32@disk"


def test_greedy_continuations_equal_the_reference(tiny):
    data = json.loads((Path(__file__).parents[1] / "data" / "greedy.json").read_text())
    with longcat.Engine(tiny, dtype="f32") as engine:
        for case in data["cases"]:
            top = case["first_step_top5"]
            logits = engine.forward(case["prompt_ids"])[-1]
            assert np.abs(logits[top["ids"]] - top["logits"]).max() < 2e-4  # stored with four digits
            out = engine.generate(
                prompt_token_ids=case["prompt_ids"], temperature=0, repetition_penalty=1, max_tokens=48
            )
            assert out.outputs[0].token_ids == case["output_ids"], case["prompt"]
            assert out.text == case["output"].removesuffix("</longcat_s>")


def test_int8_latents_cost_little(tiny):
    """Prompts and then generated tokens: the trained model finds the same text as likely as with f32 latents."""
    data = json.loads((Path(__file__).parents[1] / "data" / "greedy.json").read_text())
    models = {kind: testing.Model(tiny, "f32", kv_cache_dtype=kind) for kind in ("f32", "int8")}
    nats, best = {kind: [] for kind in models}, {kind: [] for kind in models}
    for case in data["cases"]:
        prompt, output = case["prompt_ids"], case["output_ids"]
        blocks = list(range(1, len(prompt + output) // 64 + 2))
        for kind, model in models.items():
            logits = np.concatenate(
                [model.forward([(blocks, 0, prompt)]), model.forward([(blocks, len(prompt), output)], 1)]
            ).astype(np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            completion = np.arange(len(prompt) - 1, len(logits) - 1)
            nats[kind].extend(-logprobs[completion, output])
            best[kind].extend(logits.argmax(axis=1))
    assert np.mean(np.equal(best["int8"], best["f32"])) > 0.97
    assert abs(np.mean(nats["int8"]) - np.mean(nats["f32"])) < INT8_LATENT_NATS
