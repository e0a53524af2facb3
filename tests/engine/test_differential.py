"""Random engines against runs alone. bench/scripts/differential.py runs them for minutes."""

import dataclasses

import pytest
import tokenizers
from longcat import CompletionOutput, RequestOutput
from longcat.request.outputs import Logprob, RequestMetrics
from longcat.request.tokenizer import Tokenizer

from support.differential import Differential, first_difference, shared_tokenizers
from support.random_engines import random_plan
from support.workload import Completion, Job, Reading


@pytest.fixture(scope="module")
def differential(tmp_path_factory):
    return Differential(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("seed", range(6))
def test_requests_of_random_engines(differential, seed):
    assert not differential.run(random_plan(seed)).findings


def test_a_difference_is_found_and_made_smaller(differential, monkeypatch):
    """One request of seven is given another seed when it runs alone."""
    plan = random_plan(1)
    jobs = [Job([7, 8, 9], {"max_tokens": 9, "seed": seed, "temperature": 1.5}) for seed in range(7)]
    plan = dataclasses.replace(plan, jobs=jobs, closes_after_s=None)
    run_alone = differential.alone

    def alone(plan, job):
        if job.sampling["seed"] == 5:
            job = dataclasses.replace(job, sampling=job.sampling | {"seed": 50})
        return run_alone(plan, job)

    monkeypatch.setattr(differential, "alone", alone)
    smaller, [finding] = differential.shrink(plan, tries=1, seconds=60)
    [job] = smaller.jobs
    assert job.sampling["seed"] == 5 and not smaller.disturbances
    assert job.sampling["max_tokens"] == finding.num_tokens <= 9 and finding.text.startswith("token ")


def whole(**fields) -> RequestOutput:
    completion = CompletionOutput(0, "ab", [5, 6], [logprob(5), logprob(6)], -2.0, "length")
    return RequestOutput(0, None, [1], [dataclasses.replace(completion, **fields)], RequestMetrics())


def logprob(token_id: int, value: float = -1.0) -> dict[int, Logprob]:
    return {token_id: Logprob(value, 1)}


@pytest.mark.parametrize(
    "fields, difference",
    [
        ({}, None),
        ({"token_ids": [5, 7]}, ("token 1 of the completion: 6, alone 7", 2)),
        ({"token_ids": [5, 6, 7]}, ("token 2 of the completion: None, alone 7", 3)),
        ({"logprobs": [logprob(5), logprob(6, -1.1)]}, ("log-probabilities of token 1 of the completion", 2)),
        ({"finish_reason": "stop"}, ("finish_reason of the completion: 'length', alone 'stop'", None)),
        ({"text": "a"}, ("text of the completion: 'ab', alone 'a'", None)),
        ({"stop_reason": 6}, ("stop_reason of the completion: None, alone 6", None)),
    ],
)
def test_first_difference(fields, difference):
    reading = Reading(Job([1], {"max_tokens": 2}), 100)
    output = reading.output = whole()
    completion = output.outputs[0]
    reading.completions = [
        Completion(completion.token_ids, completion.text, completion.logprobs, completion.finish_reason)
    ]
    found = first_difference(reading, whole(**fields))
    assert (found is None) == (difference is None)
    if difference:
        assert found[0].startswith(difference[0]) and found[1] == difference[1]


def test_a_request_that_was_left_is_compared_as_far_as_it_came():
    reading = Reading(Job([1], {"max_tokens": 2}, "leave", after=1), 100)
    reading.completions = [Completion([5], "a", [logprob(5)])]
    assert first_difference(reading, whole()) is None
    reading.completions = [Completion([7], "a", [logprob(5)])]
    assert first_difference(reading, whole()) == ("token 0 of the completion: 7, alone 5", 1)


def test_the_librarys_tokenizer_is_shared_and_ours_is_not(tiny, monkeypatch):
    """The library's objects leave memory behind, which the comparison of memory must not count as ours."""
    monkeypatch.setattr(tokenizers, "Tokenizer", shared_tokenizers())
    first, second = Tokenizer(tiny), Tokenizer(tiny)
    assert first is not second and first.library is second.library
    assert first.decode(second.encode("Once upon a time")) == "Once upon a time"
