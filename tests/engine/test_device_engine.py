"""The engine on the CUDA backend: what is beside a request in the batch, and what happens to it, changes no bit."""

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing

from support.checkpoints import SPARSE_VARIANTS, TENSOR_CORE_SHAPES, make_checkpoint, random_token_ids
from support.devices import EMULATED, EMULATED_FP8, DeviceEngine, needs_gpu
from support.tolerances import BF16_MODEL, FP8_OPS

pytestmark = pytest.mark.device

PROMPTS = [random_token_ids(i, length) for i, length in enumerate((1, 63, 64, 65, 100))]
NEW_TOKENS = 8
MTP = {"method": "mtp", "adaptive": False}
FP8_SHAPES = {"hidden_size": 384, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_rope_head_dim": 64, "num_layers": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device_engine")
    make_checkpoint(folder, seed=7, dtype="BF16", mtp=True)
    return str(folder)


@pytest.fixture(scope="module", params=[EMULATED, pytest.param("cuda", marks=needs_gpu)])
def device(request):
    return request.param


def completions(engine, prompts, temperature, max_tokens=NEW_TOKENS, n=1):
    """Ids and the bits of their log-probabilities, a completion."""
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
    for completion in (completion for out in outs for completion in out.outputs):
        assert completion.finish_reason == "length"
        result.append(
            (completion.token_ids, [{i: lp.logprob for i, lp in step.items()} for step in completion.logprobs])
        )
    return result


def make(checkpoint, device, **options):
    options = {"max_num_seqs": 8, "kv_cache_memory": 1 << 22, **options}
    return DeviceEngine(checkpoint, device=device, **options)


def test_completions_of_few_token_kernels_do_not_depend_on_the_batch(tmp_path, device):
    """Prompts of 63 to 65 tokens: on the tensor cores' two ways."""
    make_checkpoint(tmp_path, seed=7, dtype="BF16", config_overrides=TENSOR_CORE_SHAPES)
    before = testing.emulated_thread_kernels()
    with make(str(tmp_path), device, enable_prefix_caching=False, max_num_seqs=1) as engine:
        alone = [completions(engine, [prompt], 0.8, max_tokens=2)[0] for prompt in PROMPTS[1:4]]
    if device == EMULATED:
        assert testing.emulated_thread_kernels() > before
    with make(str(tmp_path), device, max_num_seqs=4) as engine:
        assert completions(engine, PROMPTS[1:4], 0.8, max_tokens=2) == alone


def test_completions_of_sparse_attention_do_not_depend_on_the_batch(tmp_path, device):
    """Alone; together, padded and recorded; with prefix hits; in chunks with draft tokens."""
    make_checkpoint(tmp_path, seed=7, dtype="BF16", mtp=True, **SPARSE_VARIANTS["sparse"])
    prompts = PROMPTS[::2]
    with make(str(tmp_path), device, enable_prefix_caching=False, max_num_seqs=1) as engine:
        alone = [completions(engine, [prompt], 0.8)[0] for prompt in prompts]
    with make(str(tmp_path), device) as engine:
        assert completions(engine, prompts, 0.8) == alone
        assert completions(engine, prompts, 0.8) == alone
    with make(str(tmp_path), device, max_num_batched_tokens=16, speculative=MTP) as engine:
        assert completions(engine, prompts, 0.8) == alone
        assert engine.metrics()["num_draft_tokens"] > 0


def test_preempted_completions_of_sparse_attention(tmp_path, device):
    make_checkpoint(tmp_path, seed=7, dtype="BF16", mtp=True, **SPARSE_VARIANTS["sparse"])
    three = {"prompts": [random_token_ids(5, 40)], "temperature": 0.8, "max_tokens": 30, "n": 3}
    with make(str(tmp_path), device) as engine:
        undisturbed = completions(engine, **three)
    with make(str(tmp_path), device, kv_cache_memory=150_000, enable_prefix_caching=False) as engine:
        assert completions(engine, **three) == undisturbed
        assert engine.metrics()["num_swaps"] + engine.metrics()["num_recomputes"] > 0


def row_errors(found, expected):
    return np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_completions_do_not_depend_on_the_batch(checkpoint, device, temperature):
    with make(checkpoint, device, enable_prefix_caching=False, max_num_seqs=1) as engine:
        alone = [completions(engine, [prompt], temperature)[0] for prompt in PROMPTS]
    with make(checkpoint, device) as engine:
        assert completions(engine, PROMPTS, temperature) == alone  # together, padded and recorded
        assert completions(engine, PROMPTS, temperature) == alone  # with prefix hits
    with make(checkpoint, device, max_num_batched_tokens=16) as engine:
        assert completions(engine, PROMPTS, temperature) == alone  # in chunks


@pytest.mark.parametrize("drafting", [{}, {"speculative": MTP}], ids=["plain", "mtp"])
def test_completions_survive_preemption(checkpoint, device, drafting):
    """Six completions to one prompt: the engine gets them at once, so they grow together, to two blocks each."""
    six = {"prompts": [random_token_ids(5, 30)], "temperature": 0.8, "max_tokens": 60, "n": 6}
    with make(checkpoint, device) as engine:
        undisturbed = completions(engine, **six)
    with make(checkpoint, device, kv_cache_memory=100_000, enable_prefix_caching=False, **drafting) as engine:
        assert engine.metrics()["num_kv_blocks"] < 12
        assert completions(engine, **six) == undisturbed
        assert engine.metrics()["num_swaps"] + engine.metrics()["num_recomputes"] > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("speculative", [{"method": "ngram", "prompt_lookup_min": 1}, MTP])
def test_completions_with_draft_tokens(checkpoint, device, temperature, speculative):
    prompts = [[5, 6, 7] * 8, *PROMPTS]
    with make(checkpoint, device) as engine:
        expected = completions(engine, prompts, temperature)
    with make(checkpoint, device, speculative=speculative) as engine:
        assert completions(engine, prompts, temperature) == expected
        assert completions(engine, prompts, temperature) == expected  # with prefix hits
        assert engine.metrics()["num_draft_tokens"] > 0


def few_ids(engine, prompts, max_tokens, **sampling):
    """Completions of few ids, so that draft tokens are often right."""
    options = {"allowed_token_ids": [5, 6, 7], "seed": 3, "ignore_eos": True, "max_tokens": max_tokens, **sampling}
    outs = engine.generate(prompt_token_ids=prompts, **options)
    return [completion.token_ids for out in outs for completion in out.outputs]


SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "min_tokens": 9, "n": 2},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "penalised"])
def test_accepted_draft_tokens_change_no_completion(checkpoint, device, sampling):
    """Over the ends of blocks, in batches of one and of several; the draft tokens are those of the CPU."""
    prompts = [random_token_ids(9, 50), random_token_ids(8, 61), [5, 6, 7]]
    with make(checkpoint, device) as engine:
        expected = few_ids(engine, prompts, 40, **sampling)
    counts = {}
    for name in (device, "cpu"):
        with make(checkpoint, name, speculative=MTP) as engine:
            found = few_ids(engine, prompts, 40, **sampling)
            assert name == "cpu" or found == expected
            if "n" not in sampling:
                assert name == "cpu" or few_ids(engine, prompts[:1], 40, **sampling) == expected[:1]
            metrics = engine.metrics()
            counts[name] = (metrics["num_draft_tokens"], metrics["num_accepted_tokens"])
    assert counts[device][1] > 0.2 * counts[device][0] > 0
    assert counts[device][1] / counts[device][0] == pytest.approx(counts["cpu"][1] / counts["cpu"][0], abs=0.2)


@pytest.mark.parametrize("prompts", [1, 3])
def test_a_step_with_draft_tokens_has_one_wait(checkpoint, prompts):
    """The host learns the draws and the draft tokens together, and waits for nothing else."""
    with make(checkpoint, EMULATED, enable_prefix_caching=False, speculative=MTP) as engine:

        def measured(max_tokens):
            """(uploads, read-backs, waits, steps) of all requests."""
            before = engine.metrics()["num_steps"]
            calls = calls_of(lambda: few_ids(engine, [PROMPTS[1]] * prompts, max_tokens, temperature=0.8))
            return np.array([calls[0], calls[2], calls[3], engine.metrics()["num_steps"] - before])

        short, long = measured(3), measured(40)
        assert engine.metrics()["num_accepted_tokens"] > 0
    for _, read_backs, waits, steps in (short, long):
        assert read_backs == 0 and waits == steps
    uploads, _, _, steps = long - short
    # Requests may begin in steps of their own, and a step with a prompt has another number of uploads.
    assert steps > 5 and abs(uploads - 2 * steps) < prompts


def test_draft_tokens_of_the_first_ids(tmp_path, device):
    """With a cut head: id 200 is never drafted, and completions are the same."""
    make_checkpoint(tmp_path, seed=7, dtype="BF16", mtp=True, config_overrides={"vocab_size": 300})
    sampling = {"temperature": 0.8, "allowed_token_ids": [5, 6, 200], "logit_bias": {5: 1.0, 201: 3.0}}
    accepted = {}
    with make(str(tmp_path), device) as engine:
        expected = few_ids(engine, PROMPTS[1:3], 40, **sampling)
    for name, cut in (("whole", {}), ("cut", {"draft_vocab": 100})):
        with make(str(tmp_path), device, speculative={**MTP, **cut}) as engine:
            assert few_ids(engine, PROMPTS[1:3], 40, **sampling) == expected
            metrics = engine.metrics()
            accepted[name] = metrics["num_accepted_tokens"]
    assert any(200 in completion for completion in expected)
    assert 0 < accepted["cut"] < accepted["whole"]


def test_draft_tokens_that_do_not_pay_are_switched_off(checkpoint):
    """By measured times and acceptance, of recorded steps: the layer of random weights drafts no right token."""
    with make(checkpoint, EMULATED, speculative={"method": "mtp"}) as engine:
        engine.generate(prompt_token_ids=PROMPTS[:1], max_tokens=100, temperature=0, ignore_eos=True)
        before = engine.metrics()
        engine.generate(prompt_token_ids=PROMPTS[:1], max_tokens=100, temperature=0, ignore_eos=True)
        after = engine.metrics()
    assert after["num_steps"] - before["num_steps"] > 80
    assert after["num_draft_tokens"] - before["num_draft_tokens"] < 20
    assert after["draft_acceptance"] < 0.4 and after["draft_tokens_now"] <= 1


def test_forward_is_near_the_cpus(checkpoint, device):
    with make(checkpoint, device) as engine, make(checkpoint, "cpu") as cpu:
        found, expected = engine.forward(PROMPTS[4]), cpu.forward(PROMPTS[4])
    assert np.median(row_errors(found, expected)) < BF16_MODEL


@pytest.mark.parametrize("where", ["cpu", "device"])
def test_experts_can_be_kept_in_fp8(checkpoint, device, where):
    name = "cpu" if where == "cpu" else device
    with make(checkpoint, name) as engine, make(checkpoint, name, quantization="fp8-experts") as quantized:
        error = row_errors(quantized.forward(PROMPTS[4]), engine.forward(PROMPTS[4]))
    assert 0 < np.median(error) < FP8_OPS
    with pytest.raises(ValueError, match="quantization='int3'"):
        make(checkpoint, name, quantization="int3")


def test_a_device_that_fails_ends_the_engine(checkpoint):
    """After an illegal address every call fails: the engine says so at once, and takes no more requests."""
    engine = make(checkpoint, EMULATED)
    try:
        completions(engine, PROMPTS[:1], 0.0)
        testing.fail_emulated_kernels(200)  # in the midst of a step
        # One request: of several, the later ones could meet an engine that has ended.
        [out] = engine.generate(prompt_token_ids=PROMPTS[:1], n=6, max_tokens=50, ignore_eos=True)
        assert [completion.finish_reason for completion in out.outputs] == ["error"] * 6
        testing.fail_emulated_kernels(-1)
        with pytest.raises(longcat.Error, match="this engine has failed: .*a test made this device fail"):
            engine.generate(prompt_token_ids=PROMPTS[:1], max_tokens=1)
    finally:
        testing.fail_emulated_kernels(-1)
        engine.close()


def calls_of(run):
    """What `run()` asks of emulated devices: (uploads, allocations of host memory, read-backs, waits)."""
    before = testing.emulated_calls()
    run()
    return tuple(after - earlier for after, earlier in zip(testing.emulated_calls(), before, strict=True))


@pytest.mark.parametrize("rows", [1, 6])
def test_a_step_of_decodes_uploads_two_pieces_of_memory(checkpoint, rows):
    """The batch is one, the parameters of its sampling are the other, however many rows it has."""
    prompt = [random_token_ids(5, 30)]
    with make(checkpoint, EMULATED, enable_prefix_caching=False) as engine:

        def generate(max_tokens):
            completions(engine, prompt, 0.8, max_tokens, n=rows)

        steps = engine.metrics()["num_steps"]
        short = calls_of(lambda: generate(2))
        steps_of_short = engine.metrics()["num_steps"] - steps
        long = calls_of(lambda: generate(12))
        more_steps = engine.metrics()["num_steps"] - steps - 2 * steps_of_short
    assert more_steps == 10
    assert (long[0] - short[0]) == 2 * more_steps


def test_blocks_that_are_swapped_out_share_host_memory(checkpoint):
    """Pinning takes a millisecond a call: blocks come and go in one slab."""
    with make(checkpoint, EMULATED, kv_cache_memory=100_000, enable_prefix_caching=False) as engine:

        def generate():
            six = {"prompts": [random_token_ids(5, 30)], "temperature": 0.8, "max_tokens": 60, "n": 6}
            completions(engine, **six)

        allocations = [calls_of(generate)[1] for _ in range(2)]
        assert engine.metrics()["num_swaps"] > 2
    assert allocations == [1, 0]


@pytest.mark.parametrize(
    ("device", "options", "tokens"),
    [
        ("cuda", {}, 8192),
        ("cuda:1", {}, 8192),
        ("cuda", {"max_num_batched_tokens": 256}, 256),
        ("cpu", {}, 512),
    ],
)
def test_tokens_of_a_step_by_default(checkpoint, device, options, tokens):
    """A GPU reads all experts for each step of a prompt, so its steps are long."""

    class Opened(Exception):
        pass

    class Probe(longcat.Engine):
        def _open_core(self, core_options, progress, communicator):
            raise Opened(core_options.max_num_batched_tokens)

    with pytest.raises(Opened) as opened:
        Probe(checkpoint, device=device, **options)
    assert opened.value.args == (tokens,)


def test_tables_in_host_memory_that_the_device_does_not_reach(checkpoint):
    testing.reach_host_memory(False)
    try:
        found = r"\[cuda\] cuda-emulated found no access to pinned host memory.*; expected 1\. "
        with pytest.raises(longcat.Error, match=found + r'Use ngram_placement="device" or device="cpu"\.$'):
            make(checkpoint, EMULATED)
        with make(checkpoint, EMULATED, ngram_placement="device") as engine:
            completions(engine, PROMPTS[:1], 0.0)
    finally:
        testing.reach_host_memory(True)


def test_steps_of_short_contexts_are_recorded_at_load(checkpoint):
    options = _core.EngineOptions()
    options.device, options.max_num_seqs, options.kv_cache_memory = EMULATED, 16, 1 << 22
    engine = testing.Engine(checkpoint, options)
    assert engine.num_recordings() == 5  # of 1, 2, 4, 8, 16 rows


def test_recorded_steps_draw(checkpoint):
    """Behind the model, the graph of a step has the three kernels of the sampler; before it, the choice of ids."""
    options = _core.EngineOptions()
    options.device, options.max_num_seqs, options.kv_cache_memory = EMULATED, 1, 1 << 22
    engine = testing.Engine(checkpoint, options)
    assert engine.num_recordings() == 1
    model = testing.DeviceModel(checkpoint, EMULATED)
    model.forward([([1], 0, [5])], num_generated=1, num_rows=1, recorded=True)
    assert engine.num_recorded_nodes() == 1 + model.num_nodes() + 3


# Kernels of a further draft token: its row, the layer, 2 of the head, 3 of the sampler. docs/cuda.md has the smaller
# number, of the kernels for few tokens.
@pytest.mark.parametrize(
    ("shapes", "of_the_layer"), [({}, 22), (TENSOR_CORE_SHAPES, 21)], ids=["plain", "tensor cores"]
)
def test_recorded_steps_make_draft_tokens(tmp_path, shapes, of_the_layer):
    """One graph verifies, accepts and drafts: without and with draft tokens to verify, beside those of plain steps."""
    make_checkpoint(tmp_path, seed=7, dtype="BF16", mtp=True, config_overrides=shapes)
    nodes = {}
    for most in (2, 3):
        options = _core.EngineOptions()
        options.device, options.max_num_seqs, options.kv_cache_memory = EMULATED, 1, 1 << 22
        options.speculation = ("mtp", most, 1, 1, False, 0)
        engine = testing.Engine(str(tmp_path), options)
        assert engine.num_recordings() == 2 + 5
        nodes[most] = engine.num_recorded_nodes()
    assert nodes[3] - nodes[2] == 2 * (1 + of_the_layer + 2 + 3)


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
        for generated in (0, 1):
            model = testing.DeviceModel(fp8_checkpoint, name)
            model.forward([([1], 0, [5])], num_generated=generated, recorded=True)
            nodes[name, generated] = model.num_nodes()
    # q_a_proj and kv_a_proj of two attentions are one kernel, or one each behind one that makes fp8 rows.
    assert nodes[EMULATED_FP8, 0] - nodes[EMULATED, 0] == 2 * 3
    assert nodes[EMULATED_FP8, 1] == nodes[EMULATED, 1]
