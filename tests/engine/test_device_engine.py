"""The engine on the CUDA backend: what is beside a request in the batch, and what happens to it, changes no bit."""

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing

from support.checkpoints import make_checkpoint, random_token_ids
from support.devices import EMULATED, EMULATED_FP8, DeviceEngine, needs_gpu
from support.tolerances import BF16_MODEL, FP8_OPS

pytestmark = pytest.mark.device

PROMPTS = [random_token_ids(i, length) for i, length in enumerate((1, 63, 64, 65, 100))]
NEW_TOKENS = 8
FP8_SHAPES = {"hidden_size": 384, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 64, "num_layers": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device_engine")
    make_checkpoint(folder, seed=7, dtype="BF16", mtp=True)
    return str(folder)


@pytest.fixture(scope="module", params=[EMULATED, pytest.param("cuda", marks=needs_gpu)])
def device(request):
    return request.param


def answers(engine, prompts, temperature, max_tokens=NEW_TOKENS, n=1):
    """Ids and the bits of their log-probabilities, an answer."""
    outs = engine.generate(
        prompt_token_ids=prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=3,
        logprobs=2,
        ignore_eos=True,
        n=n,
    )
    result = []
    for answer in (answer for out in outs for answer in out.outputs):
        assert answer.finish_reason == "length"
        result.append((answer.token_ids, [{i: lp.logprob for i, lp in step.items()} for step in answer.logprobs]))
    return result


def make(checkpoint, device, **options):
    options = {"max_num_seqs": 8, "kv_cache_memory": 1 << 22, **options}
    return DeviceEngine(checkpoint, device=device, **options)


def row_errors(found, expected):
    return np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_do_not_depend_on_the_batch(checkpoint, device, temperature):
    with make(checkpoint, device, enable_prefix_caching=False, max_num_seqs=1) as engine:
        alone = [answers(engine, [prompt], temperature)[0] for prompt in PROMPTS]
    with make(checkpoint, device) as engine:
        assert answers(engine, PROMPTS, temperature) == alone  # together, padded and recorded
        assert answers(engine, PROMPTS, temperature) == alone  # with prefix hits
    with make(checkpoint, device, max_num_batched_tokens=16) as engine:
        assert answers(engine, PROMPTS, temperature) == alone  # in chunks


def test_answers_survive_preemption(checkpoint, device):
    """Six answers to one prompt: the engine gets them at once, so they grow together, to two blocks each."""
    six = {"prompts": [random_token_ids(5, 30)], "temperature": 0.8, "max_tokens": 60, "n": 6}
    with make(checkpoint, device) as engine:
        undisturbed = answers(engine, **six)
    with make(checkpoint, device, kv_cache_memory=100_000, enable_prefix_caching=False) as engine:
        assert engine.metrics()["num_kv_blocks"] < 12
        assert answers(engine, **six) == undisturbed
        assert engine.metrics()["num_swaps"] + engine.metrics()["num_recomputes"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("speculative", [{"method": "ngram", "prompt_lookup_min": 1}, {"method": "mtp"}])
def test_answers_with_guesses(checkpoint, device, temperature, speculative):
    prompts = [[5, 6, 7] * 8, *PROMPTS]
    with make(checkpoint, device) as engine:
        expected = answers(engine, prompts, temperature)
    with make(checkpoint, device, speculative=speculative) as engine:
        assert answers(engine, prompts, temperature) == expected
        assert engine.metrics()["num_draft_tokens"] > 0


def test_forward_is_near_the_cpus(checkpoint, device):
    with make(checkpoint, device) as engine, make(checkpoint, "cpu") as cpu:
        found, expected = engine.forward(PROMPTS[4]), cpu.forward(PROMPTS[4])
    assert np.median(row_errors(found, expected)) < BF16_MODEL


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_experts_can_be_kept_in_fp8(checkpoint, device, where):
    name = "cpu" if where == "cpu" else device
    with make(checkpoint, name) as engine, make(checkpoint, name, quantization="fp8") as quantized:
        error = row_errors(quantized.forward(PROMPTS[4]), engine.forward(PROMPTS[4]))
    assert 0 < np.median(error) < FP8_OPS
    with pytest.raises(ValueError, match="quantization='int3'"):
        make(checkpoint, name, quantization="int3")


def test_a_device_that_fails_ends_the_engine(checkpoint):
    """After an illegal address every call fails: the engine says so at once, and takes no more requests."""
    engine = make(checkpoint, EMULATED)
    try:
        answers(engine, PROMPTS[:1], 0.0)
        testing.fail_emulated_kernels(200)  # in the midst of a step
        outs = engine.generate(prompt_token_ids=PROMPTS, max_tokens=50, ignore_eos=True)
        assert {answer.finish_reason for out in outs for answer in out.outputs} == {"error"}
        testing.fail_emulated_kernels(-1)
        with pytest.raises(longcat.Error, match="this engine has failed: .*a test made this device fail"):
            engine.generate(prompt_token_ids=PROMPTS[:1], max_tokens=1)
    finally:
        testing.fail_emulated_kernels(-1)
        engine.close()


def test_steps_of_short_contexts_are_recorded_at_load(checkpoint):
    options = _core.EngineOptions()
    options.device, options.max_num_seqs, options.kv_cache_memory = EMULATED, 16, 1 << 22
    engine = testing.Engine(checkpoint, options)
    assert engine.num_recordings() == 5  # of 1, 2, 4, 8, 16 rows


@pytest.fixture(scope="module")
def fp8_checkpoint(tmp_path_factory):
    """The latent projection has 128 + 64 rows, one and a half blocks of 128."""
    folder = tmp_path_factory.mktemp("fp8_device_engine")
    make_checkpoint(folder, seed=8, dtype="FP8", config_overrides=FP8_SHAPES)
    return str(folder)


def test_half_blocks_of_fp8_multiply_fp8(fp8_checkpoint):
    """The projection is filled up to 256 rows where inputs are fp8: the same logits as from the CPU, nearly."""
    forward = {
        name: testing.DeviceModel(fp8_checkpoint, name).forward([([1, 2], 0, PROMPTS[3])])
        for name in (EMULATED_FP8, "cpu")
    }
    assert np.median(row_errors(forward[EMULATED_FP8], forward["cpu"])) < FP8_OPS
    nodes = {}
    for name in (EMULATED_FP8, EMULATED):
        model = testing.DeviceModel(fp8_checkpoint, name)
        model.forward([([1], 0, [5])], num_generated=1, num_rows=1, recorded=True)
        nodes[name] = model.num_nodes()
    # q_a_proj and kv_a_proj of two attentions take fp8 rows, which a kernel each makes first.
    assert nodes[EMULATED_FP8] - nodes[EMULATED] == 4
