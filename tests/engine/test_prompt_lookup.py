"""Draft tokens by prompt lookup: which are proposed, and that texts stay the same."""

import pytest
from longcat import Engine
from longcat import _testing as testing

from support.engines import completions


@pytest.mark.parametrize(
    "ids, most, match, expected",
    [
        ([1, 2, 3, 1, 2], 3, (4, 2), [3, 1, 2]),
        ([1, 2, 3, 1, 2], 2, (4, 2), [3, 1]),
        ([1, 2, 3, 1, 2], 3, (4, 3), []),  # three must agree
        ([9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2], 1, (4, 1), [5]),  # the longer agreement
        ([1, 2, 5, 1, 2, 6, 1, 2], 1, (2, 1), [6]),  # of equals the latest
        ([9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2], 1, (2, 1), [6]),  # three that agree count as two
        ([4, 4, 4, 4], 3, (4, 2), [4]),  # overlaps itself
        ([7], 3, (4, 1), []),
        ([], 3, (4, 1), []),
        ([1, 2, 3], 3, (4, 1), []),
    ],
)
def test_look_up(ids, most, match, expected):
    assert testing.look_up(ids, most, *match) == expected


TEXT = "The cat saw the dog. The dog saw the cat. The cat saw the dog. The dog saw the"
SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 0.9, "top_k": 4, "top_p": 0.9, "repetition_penalty": 1.06, "frequency_penalty": 0.2, "seed": 5},
    {"temperature": 0, "logprobs": 2, "min_tokens": 20},
    {"temperature": 0, "stop": ["dog"], "n": 2, "seed": 1},
    {"temperature": 0, "ignore_eos": True, "max_tokens": 7},
    {"temperature": 0.5, "structured_outputs": {"regex": "( the cat| the dog){3}"}, "seed": 2},
]


@pytest.fixture(scope="module")
def engines(tiny):
    speculative = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1}
    with Engine(tiny, num_threads=1) as plain, Engine(tiny, num_threads=1, speculative_config=speculative) as drafting:
        yield plain, drafting


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: ",".join(s))
def test_completions_are_the_same(engines, sampling):
    plain, drafting = engines
    prompts = [TEXT, TEXT[:20], "Once upon a time"]
    before = drafting.metrics()
    found = drafting.generate(prompts, **{"max_tokens": 80, **sampling})
    assert completions(found) == completions(plain.generate(prompts, **{"max_tokens": 80, **sampling}))
    after = drafting.metrics()
    if "structured_outputs" not in sampling:
        assert after["num_draft_tokens"] > before["num_draft_tokens"]


def test_fewer_steps_where_a_text_repeats_itself(engines):
    steps = []
    for engine in engines:
        before = engine.metrics()["num_steps"]
        engine.generate(TEXT, max_tokens=100, temperature=0, ignore_eos=True)
        steps.append(engine.metrics()["num_steps"] - before)
    assert steps[0] >= 100 and steps[1] < 0.9 * steps[0], steps
    assert engines[0].metrics()["num_draft_tokens"] == 0 < engines[1].metrics()["num_accepted_tokens"]


@pytest.mark.parametrize(
    "speculative, error, text",
    [
        ({"method": "eagle"}, ValueError, 'speculative method \'eagle\' is not known: use "mtp" or "ngram"'),
        ({"method": "ngram", "adaptive": False}, TypeError, 'speculative has no parameter "adaptive"'),
        ({"method": "mtp", "num_speculative_tokens": 0}, ValueError, "num_speculative_tokens=0; expected"),
        ({"method": "mtp", "prompt_lookup_max": 4}, TypeError, 'speculative has no parameter "prompt_lookup_max"'),
        ({"num_speculative_tokens": 3}, ValueError, "speculative method None is not known"),
        ({"method": "ngram", "num_speculative_tokens": 0}, ValueError, "num_speculative_tokens=0; expected"),
        ({"method": "ngram", "num_speculative_tokens": 65}, ValueError, "expected at most 64"),
        (
            {"method": "ngram", "prompt_lookup_min": 5},
            ValueError,
            "prompt_lookup_min=5 is more than prompt_lookup_max=4",
        ),
        ({"method": "ngram", "lookup": 5}, TypeError, 'speculative has no parameter "lookup"'),
        ("ngram", TypeError, "speculative='ngram': expected {"),
    ],
)
def test_what_is_refused(tiny, speculative, error, text):
    with pytest.raises(error, match=text.replace("{", "\\{")):
        Engine(tiny, speculative=speculative)
