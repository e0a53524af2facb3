"""Draft tokens of the checkpoint's multi-token-prediction layer: texts stay the same, in fewer steps."""

from pathlib import Path

import longcat
import pytest
from longcat import Engine
from longcat import _testing as testing
from longcat.checkpoint.convert import PRESETS, convert_checkpoint

from support.checkpoints import make_checkpoint, random_token_ids, read_safetensors, write_safetensors
from support.engines import Steps, completions, make_engine, sampling

STORIES = (Path(__file__).parents[1] / "data" / "stories.txt").read_text(encoding="utf-8")
PROMPTS = [story[:100] for story in STORIES.split("\n\n") if len(story) > 200][:8]
BLOCK = 64
FIXED = {"method": "mtp", "num_speculative_tokens": 3, "adaptive": False}
CUT = {**FIXED, "draft_vocab": 900}
ADAPTIVE = {"method": "mtp", "num_speculative_tokens": 3}


@pytest.fixture(scope="module")
def engines(tiny):
    with Engine(tiny, num_threads=1) as plain, Engine(tiny, num_threads=1, speculative=FIXED) as drafting:
        yield plain, drafting


SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 0.9, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.06, "frequency_penalty": 0.2, "seed": 5},
    {"temperature": 0, "logprobs": 2, "min_tokens": 20},
    {"temperature": 0.7, "stop": ["the"], "n": 3, "seed": 1},
    {"temperature": 0, "ignore_eos": True, "max_tokens": 2},
    {"temperature": 0.5, "structured_outputs": {"regex": "( the cat| the dog){3}"}, "seed": 2},
    {"temperature": 0, "prompt_logprobs": 1},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: ",".join(s))
def test_completions_are_the_same(engines, sampling):
    plain, drafting = engines
    before = drafting.metrics()["num_draft_tokens"]
    found = drafting.generate(PROMPTS[:3], **{"max_tokens": 80, **sampling})
    assert completions(found) == completions(plain.generate(PROMPTS[:3], **{"max_tokens": 80, **sampling}))
    if "structured_outputs" not in sampling and sampling.get("max_tokens") != 2:  # a second token leaves none to draft
        assert drafting.metrics()["num_draft_tokens"] > before


@pytest.mark.parametrize("sampling", SAMPLINGS[:4], ids=lambda s: ",".join(s))
def test_the_count_changes_no_completion(engines, tiny, sampling):
    """However many tokens the measured times make the engine draft, and whenever it stops and begins again."""
    with Engine(tiny, num_threads=1, speculative={"method": "mtp", "num_speculative_tokens": 6}) as adaptive:
        for _ in range(2):
            found = adaptive.generate(PROMPTS[:3], **{"max_tokens": 150, **sampling})
            assert completions(found) == completions(
                engines[0].generate(PROMPTS[:3], **{"max_tokens": 150, **sampling})
            )
        assert 0 < adaptive.metrics()["draft_acceptance"] < 1 and adaptive.metrics()["draft_cost"] > 0


def test_drafting_that_never_pays_is_switched_off(tmp_path):
    """The layer of random weights drafts no right token."""
    make_checkpoint(tmp_path, seed=1, mtp=True)
    request = {"prompt_token_ids": list(range(5, 25)), "temperature": 0, "ignore_eos": True}
    with Engine(tmp_path, num_threads=1) as plain, Engine(tmp_path, num_threads=1, speculative=ADAPTIVE) as drafting:
        assert completions([drafting.generate(**request, max_tokens=200)]) == completions(
            [plain.generate(**request, max_tokens=200)]
        )
        before = drafting.metrics()
        drafting.generate(**request, max_tokens=300)
        after = drafting.metrics()
        assert after["num_steps"] - before["num_steps"] > 250
        assert after["num_draft_tokens"] - before["num_draft_tokens"] < 30
        assert after["draft_acceptance"] < 0.3 and after["draft_tokens_now"] <= 1


@pytest.mark.parametrize(
    "sampling, share",
    [
        ({"temperature": 0}, 0.7),
        # Drawn tokens are drafted about as well as the likeliest: both draws use the same random numbers.
        ({"temperature": 1.0}, 0.7),
        ({"temperature": 0.7, "repetition_penalty": 1.5}, 0.75),  # and with the same penalties
    ],
    ids=["greedy", "drawn", "penalised"],
)
def test_fewer_steps(engines, sampling, share):
    steps = []
    for engine in engines:
        before = engine.metrics()
        for prompt in PROMPTS:
            engine.generate(prompt, max_tokens=100, seed=7, ignore_eos=True, **sampling)
        after = engine.metrics()
        steps.append(after["num_steps"] - before["num_steps"])
    assert steps[0] >= 800 and steps[1] < share * steps[0], steps


def drafts_of(model, token_ids, num_prompt_tokens, allowed, num_tokens):
    """Draft tokens behind `token_ids`, whose last token is not computed yet: the likeliest of `allowed` each."""

    def likeliest(logits):
        return max(allowed or range(len(logits)), key=lambda token_id: logits[token_id])

    blocks, length = list(range(1, 10)), len(token_ids)
    for start, end in ((0, num_prompt_tokens), (num_prompt_tokens, length - 1)):
        if start < end:
            kind = int(start > 0)  # of generated tokens
            model.forward([(blocks, start, token_ids[start:end])], num_generated=kind)
            logits = model.forward_mtp([(blocks, start, token_ids[start + 1 : end + 1])], num_generated=kind)
    drafts, row = [likeliest(logits[-1])], len(logits) - 1
    while len(drafts) < num_tokens:
        position = length - 1 + len(drafts) - 1
        [logits] = model.forward_mtp([(blocks, position, drafts[-1:])], num_generated=1, rows=[row])
        drafts.append(likeliest(logits))
        row = 0
    return drafts


@pytest.mark.parametrize("allowed", [[], [5, 6, 7]], ids=["trained", "random"])
def test_draft_tokens_are_those_of_the_layer(tiny, tmp_path, allowed):
    """After each step, the draft tokens are those of the layer run alone."""
    folder, num_tokens, most = tiny, 120, 3
    if allowed:
        make_checkpoint(tmp_path, seed=1, mtp=True)
        folder = str(tmp_path)
    model = testing.DeviceModel(folder, "cpu", dtype="f32", kv_cache_dtype="f32", with_mtp=True)
    steps = Steps(make_engine(folder, dtype="f32", num_threads=1, speculation=("mtp", most, 1, 1, False, 0)))
    prompt = random_token_ids(1, 30)
    [request_id] = steps.add(prompt, sampling(num_tokens, allowed_token_ids=allowed))
    found, deep = steps.outcomes[request_id].token_ids, 0
    while True:
        before = len(found)
        steps.step()
        if steps.outcomes[request_id].finish_reason:
            break
        ids = [*prompt, *found]
        slot = (
            len(ids) - 1
        ) % BLOCK  # of the newest token: draft tokens stay in its block, and the first needs no slot
        left = num_tokens - before - 2
        count = min(most, 1 if slot == 0 else BLOCK - 1 - slot, left)
        expected = drafts_of(model, ids, len(prompt), allowed, count) if count > 0 else []
        assert steps.engine.drafts(request_id) == expected, len(ids)
        deep += len(expected) > 1
    assert len(found) == num_tokens and deep > 5


@pytest.mark.parametrize("quant", [None, "int8", "int4"])
def test_draft_tokens_of_the_first_ids(tiny, tmp_path, quant):
    """With a cut head, completions are the same and draft tokens have the first ids. Rows come in blocks of 128."""
    folder = tiny
    if quant:
        folder = str(tmp_path / quant)
        convert_checkpoint(tiny, folder, PRESETS[quant])
    with Engine(folder, num_threads=1) as plain, Engine(folder, num_threads=1, speculative=CUT) as cut:
        for options in SAMPLINGS[:4]:
            found = cut.generate(PROMPTS[:2], **{"max_tokens": 60, **options})
            assert completions(found) == completions(plain.generate(PROMPTS[:2], **{"max_tokens": 60, **options}))
        metrics = cut.metrics()
        assert 0 < metrics["num_accepted_tokens"] < metrics["num_draft_tokens"]
    drafted = {}
    for draft_vocab in (0, 1900):
        core = {"num_threads": 1, "speculation": ("mtp", 3, 1, 1, False, draft_vocab)}
        steps = Steps(make_engine(folder, **core))
        params = sampling(20)
        params.set_logit_bias({5: -1.0, 1919: 20.0, 1920: 30.0})
        [request_id] = steps.add(random_token_ids(1, 30), params)
        drafted[draft_vocab] = set()
        while True:
            steps.step()
            if steps.outcomes[request_id].finish_reason:
                break
            drafted[draft_vocab].update(steps.engine.drafts(request_id))
        assert steps.outcomes[request_id].token_ids == [1920] * 20
    assert drafted == {0: {1920}, 1900: {1919}}


@pytest.mark.parametrize("draft_vocab", [0, -3, 1.5])
def test_cuts_that_are_refused(tiny, draft_vocab):
    with pytest.raises((TypeError, ValueError), match="draft_vocab="):
        Engine(tiny, speculative={"method": "mtp", "draft_vocab": draft_vocab})


def test_a_cut_wants_one_rank(tiny):
    with pytest.raises(ValueError, match="draft_vocab=128 with 2 ranks.*expected one rank"):
        make_engine(tiny, speculation=("mtp", 3, 1, 1, False, 128), tensor_parallel_size=2)


def test_quantised_checkpoints_keep_their_layer(tiny, tmp_path):
    convert_checkpoint(tiny, tmp_path / "int4", PRESETS["int4"])
    with (
        Engine(tmp_path / "int4", num_threads=1) as plain,
        Engine(tmp_path / "int4", num_threads=1, speculative={"method": "mtp", "adaptive": False}) as drafting,
    ):
        sampling = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
        assert completions(drafting.generate(PROMPTS, **sampling)) == completions(plain.generate(PROMPTS, **sampling))
        for prompt in PROMPTS:
            drafting.generate(prompt, **sampling)
        metrics = drafting.metrics()
        assert metrics["num_accepted_tokens"] > 0.2 * metrics["num_draft_tokens"]


def test_a_checkpoint_without_the_layer(tmp_path):
    make_checkpoint(tmp_path, seed=1)
    with pytest.raises(longcat.Error, match=r'has no MTP layer \(model.mtp.\*\).*use method "ngram"'):
        Engine(tmp_path, speculative={"method": "mtp"})


def test_a_layer_that_does_not_fit(tmp_path):
    make_checkpoint(tmp_path, seed=1, mtp=True)
    [file] = tmp_path.glob("*.safetensors")
    tensors = read_safetensors(file)
    del tensors["model.mtp.norm.weight"]
    dtype, [rows, cols], raw = tensors["model.mtp.layers.0.eh_proj.weight"]
    tensors["model.mtp.layers.0.eh_proj.weight"] = (dtype, [cols, rows], raw)
    write_safetensors(file, tensors)
    with pytest.raises(longcat.Error, match="2 tensors do not fit.*mtp.norm.weight.*eh_proj"):
        Engine(tmp_path, speculative={"method": "mtp"})
    Engine(tmp_path).close()
