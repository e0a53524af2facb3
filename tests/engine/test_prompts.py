"""Prompts and parameters in every form that callers bring."""

import copy
import pickle
import re

import longcat
import numpy as np
import pytest

TEXT = "Once upon a time"
GREEDY = {"max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def engine(tiny):
    with longcat.Engine(tiny, num_threads=1) as engine:
        yield engine


def forms(ids):
    """All ways to give one prompt."""
    return {
        "text": TEXT,
        "dict": {"prompt": TEXT},
        "dict with unset fields": {"prompt": TEXT, "multi_modal_data": None, "cache_salt": None},
        "ids": ids,
        "tuple of ids": tuple(ids),
        "array of ids": np.array(ids),
        "dict of ids": {"prompt_token_ids": ids},
        "dict of ids with their text": {"prompt_token_ids": ids, "prompt": TEXT},
    }


def test_one_prompt_in_every_form(engine):
    ids = engine.encode(TEXT)
    expected = engine.generate(TEXT, GREEDY).outputs[0].token_ids
    for name, prompt in forms(ids).items():
        one = engine.generate(prompt, GREEDY)
        assert isinstance(one, longcat.RequestOutput) and one.outputs[0].token_ids == expected, name
        assert one.prompt_token_ids == ids, name
        [listed] = engine.generate([prompt], GREEDY)
        assert listed.outputs[0].token_ids == expected, name
        assert engine.score(prompt).token_ids == ids, name


def test_lists_may_mix_forms(engine):
    prompts = list(forms(engine.encode(TEXT)).values())
    outputs = engine.generate(prompts, GREEDY)
    assert len(outputs) == len(prompts) and len({output.text for output in outputs}) == 1
    streamed = [""] * len(prompts)
    for chunk in engine.generate(tuple(prompts), GREEDY, stream=True):
        streamed[chunk.prompt_index] += chunk.delta
    assert streamed == [output.text for output in outputs]


@pytest.mark.parametrize(
    "prompts, kind, said",
    [
        (3, TypeError, "prompts is a int; expected a text"),
        ([TEXT, 3.5], TypeError, "prompts[1] is 3.5; expected a text"),
        ([None], TypeError, "prompts[0] is None"),
        ({}, TypeError, "prompts is {}"),
        ({"prompt": 5}, TypeError, "prompts is {'prompt': 5}"),
        ({"text": TEXT}, ValueError, 'prompts has "text", which this engine does not read; expected'),
        ([{"prompt": TEXT, "multi_modal_data": {"image": 1}}], ValueError, 'prompts[0] has "multi_modal_data"'),
        ({"prompt_token_ids": ["a"]}, ValueError, "token id at index 0 is 'a'"),
        ([1, "a"], ValueError, "token id at index 1 is 'a'"),
        (b"Once", TypeError, "prompts is a bytes"),
    ],
)
def test_what_is_no_prompt_is_named(engine, prompts, kind, said):
    with pytest.raises(kind, match=re.escape(said)) as error:
        engine.generate(prompts, GREEDY)
    assert "\n" not in str(error.value)


def test_parameters_of_each_prompt(engine):
    params = [longcat.SamplingParams(max_tokens=n, temperature=0) for n in (1, 5, 3)]
    outputs = engine.generate([TEXT] * 3, params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]
    outputs = engine.generate([TEXT] * 2, [{"max_tokens": 2}, params[1]], ignore_eos=True, n=2)
    assert [[len(a.token_ids) for a in output.outputs] for output in outputs] == [[2, 2], [5, 5]]
    hello = [{"role": "user", "content": "Hello"}]
    replies = engine.chat([hello, hello], params[:2])
    assert [len(reply.outputs[0].token_ids) for reply in replies] == [1, 5]
    formed = [{"structured_outputs": {"choice": ["yes", "no"]}}, {"structured_outputs": {"choice": ["left"]}}]
    assert engine.generate(["a", "b"], formed)[1].text == "left"
    for wrong in ([], params[:1], params):
        with pytest.raises(ValueError, match=f"sampling_params has {len(wrong)} entries for 2 prompts"):
            engine.generate([TEXT] * 2, wrong)


def streams(engine):
    """What a caller holds of an engine, each with the call that shows that it works."""
    yield engine, lambda: engine.generate(TEXT, GREEDY)
    stream = engine.generate(TEXT, max_tokens=50, ignore_eos=True, stream=True)
    yield stream, lambda: next(stream)
    chat = engine.chat([{"role": "user", "content": "Hello"}], max_tokens=50, ignore_eos=True, stream=True)
    yield chat, lambda: next(chat)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_copies_are_refused_and_the_original_works_on(engine, make):
    for thing, use in streams(engine):
        with pytest.raises(TypeError) as error:
            make(thing)
        assert str(error.value).startswith(f"[engine] copying or pickling {type(thing).__name__} is not supported.")
        use()


def test_reprs_are_short(engine):
    long = engine.generate(TEXT * 20, max_tokens=300, ignore_eos=True, logprobs=5, n=2, seed=1)
    reply = engine.chat([{"role": "user", "content": "Hello " * 100}], max_tokens=300, ignore_eos=True)
    chunks = list(engine.generate(TEXT, max_tokens=100, ignore_eos=True, logprobs=1, stream=True))
    for thing in (long, reply, long.outputs[0], chunks[-1], engine.score(TEXT * 20)):
        assert len(repr(thing)) < 2000 and "\n" not in repr(thing), repr(thing)
        assert type(thing).__name__ in repr(thing) and "None" not in repr(thing)
    assert "(300 in all)" in repr(long.outputs[0]) and "finish_reason='length'" in repr(long)
    assert repr(longcat.CompletionOutput(0, "Hi", [1, 2], finish_reason="stop")) == (
        "CompletionOutput(index=0, text='Hi', token_ids=[1, 2], finish_reason='stop')"
    )


@pytest.mark.parametrize(
    "model, kind, said",
    [
        (3, TypeError, "model=3 is a int; expected the path of a checkpoint folder"),
        (b"caf\xe9", ValueError, "the folder name b'caf\\xe9' is not UTF-8; expected UTF-8. Rename the folder."),
        ("caf\udce9", ValueError, "is not UTF-8"),
    ],
)
def test_what_is_no_folder_is_named(model, kind, said):
    with pytest.raises(kind, match=re.escape(said)):
        longcat.Engine(model)


def test_a_folder_may_be_given_as_bytes(tiny):
    with longcat.Engine(tiny.encode(), kv_cache_memory="1MiB") as engine:
        assert engine.model == tiny
    with pytest.raises(longcat.Error, match="nowhere does not exist; expected a tokenizer.json"):
        longcat.Engine(tiny, tokenizer="nowhere")
