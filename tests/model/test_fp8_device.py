"""quantization="fp8" on the CUDA backend: near the bf16 weights, the planned memory, and the invariance contract."""

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.planning.plan import plan

from support.checkpoints import TENSOR_CORE_SHAPES, make_checkpoint, random_token_ids
from support.device_cases import forward_in_chunks
from support.devices import EMULATED, EMULATED_FP8, EMULATED_REVERSED, DeviceEngine, needs_gpu
from support.tolerances import FP8_MODEL

pytestmark = pytest.mark.device

DEVICES = [EMULATED, EMULATED_FP8, pytest.param("cuda", marks=needs_gpu)]


def ids_of(count, seed=0):
    return np.random.default_rng(seed).integers(3, 60, count).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Whole blocks of 128 but for kv_a_proj, which has 64 rows."""
    folder = tmp_path_factory.mktemp("fp8_on_load")
    make_checkpoint(folder, seed=5, dtype="BF16", config_overrides=TENSOR_CORE_SHAPES, mtp=True)
    return str(folder)


def row_errors(found, expected):
    return np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_generated", [0, 1])
def test_logits_are_near_those_of_the_bf16_weights(checkpoint, device, num_generated):
    """A prompt, and generated tokens: rounded weights, with rounded inputs and without."""
    chunk = [([1, 2], 0, ids_of(70))]
    fp8 = testing.DeviceModel(checkpoint, device, quantization="fp8").forward(chunk, num_generated=num_generated)
    error = row_errors(fp8, testing.DeviceModel(checkpoint, "cpu").forward(chunk))
    # A token whose router scores nearly tie may go to another expert: most rows must agree, not each.
    assert 0 < np.median(error) < FP8_MODEL and np.mean(error < 4 * FP8_MODEL) > 0.9, error


@pytest.mark.parametrize("device", DEVICES)
def test_generated_tokens_are_nearer_than_prompt_tokens(checkpoint, device):
    """They meet the same weights, and are not rounded themselves. Without fp8 tensor cores no token is."""
    chunk = [([1, 2], 0, ids_of(70))]
    exact = testing.DeviceModel(checkpoint, "cpu", quantization="fp8").forward(chunk)
    errors = []
    for num_generated in (0, 1):
        found = testing.DeviceModel(checkpoint, device, quantization="fp8").forward(chunk, num_generated=num_generated)
        errors.append(np.median(row_errors(found, exact)))
    assert errors[1] < (errors[0] / 1.5 if device != EMULATED else 2 * errors[0])


def test_kernels_on_tensor_cores_serve_all_layers(checkpoint):
    """Of generated tokens: q_a with kv_a, q_b, o; gate with up, down; the router's scores and picks; two of the
    experts; the head."""
    counts = []
    for tokens in (5, 32, 40):
        model = testing.DeviceModel(checkpoint, EMULATED_FP8, quantization="fp8")
        before = testing.emulated_thread_kernels()
        model.forward([([1, 2], 0, ids_of(tokens))], num_generated=1)
        counts.append(testing.emulated_thread_kernels() - before)
    assert counts == [2 * 3 + 2 * 2 + 2 + 2 + 1] * 2 + [2 * 4 + 2 * 3 + 2 + 2 + 1]


@pytest.mark.parametrize("device", [*DEVICES, EMULATED_REVERSED])
def test_bits_do_not_depend_on_chunks_batch_padding_or_recording(checkpoint, device):
    prompt, generated = ids_of(70), ids_of(2, seed=1)

    def run(chunks, neighbours, recorded):
        return forward_in_chunks(
            checkpoint, device, prompt, generated, chunks, neighbours, recorded, quantization="fp8"
        )

    whole = run([70], 0, False)
    assert np.isfinite(whole).all()
    assert np.array_equal(run([33, 32, 5], 5, True), whole)
    assert np.array_equal(run([1, 17, 52], 64, False), whole)


@pytest.mark.parametrize("device", DEVICES)
def test_bits_do_not_depend_on_tokens_of_the_other_kind(checkpoint, device):
    """A chunk of a prompt beside generated tokens of others."""
    prompt, other = ids_of(40), ids_of(20, seed=2)

    def run(beside):
        model = testing.DeviceModel(checkpoint, device, quantization="fp8")
        model.poison()
        model.forward([([7], 0, other)])
        chunks = [([7], 20, [5]), ([4], 0, prompt)]
        if beside:
            return model.forward(chunks, num_generated=1)
        return np.concatenate([model.forward(chunks[:1], num_generated=1), model.forward(chunks[1:])])

    assert np.array_equal(run(True), run(False))


def test_the_planned_memory_is_taken(checkpoint):
    """Half of what is multiplied. kv_a_proj is filled up to whole blocks where inputs are fp8."""
    stored, fp8 = (
        testing.DeviceModel(checkpoint, EMULATED, ngram_placement="host", quantization=of).emulated_weight_bytes()
        for of in ("", "fp8")
    )
    made = plan(checkpoint, bandwidth=16e9, dtype="bf16")
    bits = made.fp8_bits(
        sum(p.weights for p in made.parts if p.name not in ("experts", "word embedding", "N-gram tables"))
    )
    assert bits < 13
    planned = {row.format: row.fast_bytes for row in made.placements() if row.placement == "GPU, tables in host memory"}
    assert stored - fp8 == pytest.approx(planned["bf16"] - planned["fp8"], rel=0.02)
    padded = testing.DeviceModel(
        checkpoint, EMULATED_FP8, ngram_placement="host", quantization="fp8"
    ).emulated_weight_bytes()
    assert padded - fp8 == 2 * 64 * 256


PROMPTS = [random_token_ids(i, length) for i, length in enumerate((1, 63, 65, 100))]


def completions(engine, prompts, max_tokens=6, n=1):
    """Ids and the bits of their log-probabilities, a completion."""
    outs = engine.generate(
        prompt_token_ids=prompts, max_tokens=max_tokens, temperature=0.8, seed=3, logprobs=2, ignore_eos=True, n=n
    )
    return [
        (one.token_ids, [{i: lp.logprob for i, lp in step.items()} for step in one.logprobs])
        for out in outs
        for one in out.outputs
    ]


def make(checkpoint, device, **options):
    options = {"max_num_seqs": 8, "kv_cache_memory": 1 << 22, "quantization": "fp8", **options}
    return DeviceEngine(checkpoint, device=device, **options)


@pytest.mark.parametrize("device", DEVICES)
def test_completions_do_not_depend_on_the_batch(checkpoint, device):
    """Alone; together, padded and recorded; with prefix hits; in chunks beside generated tokens; with drafts."""
    with make(checkpoint, device, enable_prefix_caching=False, max_num_seqs=1) as engine:
        alone = [completions(engine, [prompt])[0] for prompt in PROMPTS]
    with make(checkpoint, device) as engine:
        assert completions(engine, PROMPTS) == alone
        assert completions(engine, PROMPTS) == alone
    with make(checkpoint, device, max_num_batched_tokens=16) as engine:
        assert completions(engine, PROMPTS) == alone
    with make(checkpoint, device, speculative={"method": "mtp", "adaptive": False}) as engine:
        assert completions(engine, PROMPTS) == alone
        assert engine.metrics()["num_draft_tokens"] > 0


@pytest.mark.parametrize("swap_memory", ["auto", 0])
@pytest.mark.parametrize("device", DEVICES)
def test_completions_survive_preemption(checkpoint, device, swap_memory):
    """Swapped out, and computed again: generated tokens keep their arithmetic."""
    six = {"prompts": [random_token_ids(5, 30)], "max_tokens": 60, "n": 6}
    with make(checkpoint, device) as engine:
        undisturbed = completions(engine, **six)
    with make(checkpoint, device, kv_cache_memory=130_000, swap_memory=swap_memory,
              enable_prefix_caching=False) as engine:  # fmt: skip
        assert completions(engine, **six) == undisturbed
        metrics = engine.metrics()
        assert metrics["num_recomputes" if swap_memory == 0 else "num_swaps"] > 0


@pytest.mark.parametrize("name", ["cpu", EMULATED, EMULATED_FP8])
def test_the_core_and_the_experts_become_fp8(checkpoint, name):
    """Memory and logits: as stored, experts alone, and the core, too."""
    sizes, logits = [], []
    for quantization in (None, "fp8-experts", "fp8"):
        with make(checkpoint, name, quantization=quantization) as engine:
            sizes.append(engine._core.info()["weight_bytes"])
            logits.append(engine.forward(PROMPTS[3]))
    assert sizes[0] > sizes[1] > sizes[2]
    experts = 20 * 3 * 256 * 128
    assert sizes[0] - sizes[1] == experts - 20 * 3 * 2 * 4
    assert not any(np.array_equal(logits[i], logits[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(np.median(row_errors(found, logits[0])) < FP8_MODEL for found in logits[1:])


def test_the_plan_of_fp8_is_what_the_engine_holds(checkpoint):
    for quantization in (None, "fp8-experts", "fp8"):
        options = {"quantization": quantization, "kv_cache_memory": "1MiB"}
        for more in ({}, {"speculative": {"method": "mtp"}}):
            made = plan(checkpoint, bandwidth=1e9, **options, **more)
            with make(checkpoint, "cpu", **options, **more) as engine:
                assert made.rank_weights == [engine._core.info()["weight_bytes"]], (quantization, more)


def test_names_of_quantisations(checkpoint):
    core = _core.EngineOptions()
    core.device, core.quantization = "cpu", "fp9"
    with pytest.raises(ValueError, match='quantization="fp9" is not known: use "fp8" or "fp8-experts"'):
        testing.Engine(checkpoint, core)
    with pytest.raises(ValueError, match='quantization=\'int3\' is not known: use None, "fp8" or "fp8-experts"'):
        make(checkpoint, "cpu", quantization="int3")
