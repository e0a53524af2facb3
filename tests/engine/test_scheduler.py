"""Random schedules of the scheduler and its blocks without a model: nothing leaks, nothing is wrongly shared, all end.

LONGCAT_THOROUGH=1 runs 2,000 random schedules of other seeds each time; the usual run is shorter and always the same.
"""

import os
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from longcat import _testing as testing
from longcat._core import OutOfMemoryError, QueueFullError

from support.cache_model import BLOCK, VOCAB, CacheModel

THOROUGH = os.environ.get("LONGCAT_THOROUGH") == "1"
NUM_SCHEDULES = 2000 if THOROUGH else 300

# Prompts are beginnings of these; the first two have two blocks in common.
TEXTS = [[(7 * i + i // 64) % VOCAB for i in range(300)]]
TEXTS.append(TEXTS[0][: 2 * BLOCK] + [(3 * i) % VOCAB for i in range(300 - 2 * BLOCK)])
TEXTS.append([(11 * i + 1) % VOCAB for i in range(300)])


def model_with(**options) -> CacheModel:
    return CacheModel(**{"max_num_seqs": 4, "max_num_batched_tokens": 200, "num_blocks": 9} | options)


def generate(model: CacheModel, num_steps: int) -> None:
    """Some steps, and nothing under way afterwards."""
    for _ in range(num_steps):
        model.step(overlap=False)


def test_the_first_in_line_advances_in_every_step():
    model = model_with(num_blocks=4)  # room for one of them at its end
    for text in TEXTS:
        model.add(text[:100], 80)
    while 0 in model.live:
        before = model.live[0].num_output
        model.step(overlap=False)
        assert 0 in model.ended or model.live[0].num_output == before + 1
    model.finish_all()
    assert model.scheduler.stats()["num_recomputes"] > 0


def test_sequences_without_room_begin_later():
    model = model_with(max_num_seqs=2)
    model.add(TEXTS[0][:100], 5, n=4)
    model.step()
    assert (model.scheduler.num_running, model.scheduler.num_waiting) == (2, 2)
    model.finish_all()
    assert model.seen["fork"] == 1 and model.seen["sequence begins on its own"] == 2


def test_sequences_of_an_aborted_one_begin_on_their_own():
    model = model_with()
    first, second, third = model.add(TEXTS[0][:100], 5, n=3)
    model.abort(second)
    model.abort(first)
    model.check_books()
    model.finish_all()
    assert model.ended == {first: "abort", second: "abort", third: "length"}


def test_whole_prompt_hit_copies_its_last_block():
    model = model_with()
    for _ in range(2):
        model.add(TEXTS[0][: 2 * BLOCK], 5)
        model.finish_all()
    assert model.seen["copy"] == model.seen["whole prompt hit"] == 1


def test_whole_prompt_hit_without_room_for_the_copy():
    model = model_with(max_num_seqs=1, num_blocks=3)
    model.add(TEXTS[0][: 2 * BLOCK], 0, n=2, scores=True)
    model.finish_all()
    assert model.seen["prefix hit"] == 1 and model.seen["copy"] == 0


def test_prompt_is_scored_once_though_it_is_computed_twice():
    model = model_with(max_num_batched_tokens=50)
    (request,) = model.add(TEXTS[0][:200], 5, scores=True)
    generate(model, 2)
    assert model.preempt(request, may_swap=False)
    model.finish_all()
    assert model.seen["ended: length"] == 1


def test_the_rest_goes_on_while_one_waits_for_its_mask():
    model = model_with(max_num_seqs=2)
    (constrained,) = model.add(TEXTS[0][:100], 5, constrained=True)
    model.add(TEXTS[1][:100], 20)
    generate(model, 30)
    assert list(model.live) == [constrained] and model.live[constrained].num_output == 0
    model.finish_all()


def test_blocks_of_a_completion_are_no_prefix():
    """Decode arithmetic computed them, so a prompt that continues the completion shares the first prompt alone."""
    model = model_with()
    model.add(TEXTS[0][:BLOCK], 70)
    model.finish_all()
    (request,) = model.add(model.told[0], 5)
    model.step()
    assert model.scheduler.sequences()[request]["num_cached_tokens"] == BLOCK
    model.finish_all()


def test_a_sequence_whose_first_token_was_lost_draws_it_again():
    """The step that failed computed its sibling, which ends; the sequence itself starts over."""
    model = model_with()
    first, second = model.add(TEXTS[0][:100], 5, n=2)
    assert model.schedule()
    model.start_over()
    model.finish_all()
    assert model.ended == {first: "error", second: "length"}


def test_more_requests_than_may_queue():
    scheduler = testing.Scheduler(max_num_queued=2, num_blocks=4)
    scheduler.add([1], 1)
    scheduler.add([1], 1)
    with pytest.raises(QueueFullError, match="max_num_queued=2"):
        scheduler.add([1], 1)


@pytest.mark.parametrize("may_swap", [False, True])
def test_last_token_alone_is_planned_when_its_sequence_comes_back(may_swap):
    """With nothing under way an empty plan puts the engine to sleep, and nothing would wake it."""
    model = model_with(num_host_blocks=4)
    (request,) = model.add(TEXTS[0][: 2 * BLOCK], 5)
    generate(model, 1)
    assert model.preempt(request, may_swap)
    assert model.schedule()
    model.finish_all()


def test_borrowed_blocks_are_not_those_to_be_saved():
    model = model_with(num_blocks=7, num_host_blocks=4)
    (request,) = model.add(TEXTS[0][:100], 5)
    generate(model, 2)
    model.preempt(request, may_swap=True)
    assert model.scheduler.num_free == 6
    with pytest.raises(OutOfMemoryError, match="5 blocks .* 4 are free"):
        model.scheduler.borrow(5)
    model.borrow(4)
    model.give_back()
    model.finish_all()


OPTIONS = st.integers(1, 6).flatmap(
    lambda max_num_seqs: st.fixed_dictionaries(
        {
            "max_num_seqs": st.just(max_num_seqs),
            "max_num_batched_tokens": st.integers(max_num_seqs, 200),
            "num_blocks": st.integers(2, 12),
            "num_host_blocks": st.integers(0, 8),
            "enable_prefix_caching": st.sampled_from([True, True, True, False]),
        }
    )
)
REQUESTS = st.fixed_dictionaries(
    {
        "text": st.integers(0, 2),
        "length": st.one_of(st.sampled_from([BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK]), st.integers(1, 300)),
        "max_tokens": st.integers(0, 80),
        "n": st.sampled_from([1, 1, 2, 3, 4]),
        "stop_token_ids": st.sampled_from([[], [7]]),
        "constrained": st.sampled_from([False, False, False, True]),
        "scores": st.sampled_from([False, False, True]),
        "group": st.sampled_from([-1, -1, 0, 1]),
    }
)


class RandomSchedules(RuleBasedStateMachine):
    """Requests come and go, blocks are taken away and masks are late, in any order."""

    @initialize(options=OPTIONS, requests=st.lists(REQUESTS, min_size=1, max_size=4))
    def start(self, options, requests):
        self.model = CacheModel(**options)
        for request in requests:
            self.add(request)

    def some_request(self, pick: int) -> int:
        return sorted(self.model.live)[pick % len(self.model.live)]

    @rule(request=REQUESTS)
    def add(self, request):
        self.add_prompt(TEXTS[request["text"]][: request["length"]], request)

    @precondition(lambda self: self.model.told)
    @rule(request=REQUESTS, pick=st.integers(0, 2))
    def go_on(self, request, pick):
        """A completion becomes part of a prompt, as in a chat: it is computed by prompt arithmetic from then on."""
        told = self.model.told[-1 - pick % len(self.model.told)]
        self.model.seen["goes on from a completion"] += 1
        self.add_prompt((told + TEXTS[request["text"]][:10])[:300], request)

    def add_prompt(self, prompt, request):
        request = {key: value for key, value in request.items() if key not in ("text", "length")}
        room = self.model.scheduler.num_blocks * BLOCK
        max_tokens = min(request.pop("max_tokens"), room - 1)
        prompt = prompt[: room - max_tokens]
        scores = request.pop("scores") or max_tokens == 0
        self.model.add(prompt, max_tokens, scores=scores, **request)

    @precondition(lambda self: self.model.live)
    @rule(count=st.integers(1, 40), overlap=st.sampled_from([True, True, False]), masks=st.booleans())
    def steps(self, count, overlap, masks):
        for _ in range(count):
            if masks:
                self.model.give_masks()
            self.model.step(overlap)
            self.model.check_books()

    @precondition(lambda self: self.model.live and len(self.model.under_way) <= 1)
    @rule()
    def schedule(self):
        self.model.schedule()

    @precondition(lambda self: self.model.under_way)
    @rule()
    def commit(self):
        self.model.commit()

    @precondition(lambda self: self.model.live)
    @rule(pick=st.integers(0, 20), may_swap=st.booleans())
    def preempt(self, pick, may_swap):
        self.model.preempt(self.some_request(pick), may_swap)

    @precondition(lambda self: self.model.live)
    @rule(pick=st.integers(0, 20), behind=st.sampled_from([0, 0, 1]))
    def give_mask(self, pick, behind):
        self.model.give_mask(self.some_request(pick), behind)

    @precondition(lambda self: self.model.live)
    @rule(pick=st.integers(0, 20))
    def abort(self, pick):
        self.model.abort(self.some_request(pick))

    @rule(what=st.sampled_from(["borrow", "borrow", "give back", "give back", "forget prefixes", "start over"]))
    def disturb(self, what):
        if what == "borrow":
            self.model.borrow((self.model.scheduler.num_free + 1) // 2)
        elif what == "give back" and self.model.borrowed:
            self.model.give_back()
        elif what == "forget prefixes":
            self.model.scheduler.reset_prefix_cache()
        elif what == "start over" and self.model.live:
            self.model.start_over()

    @invariant()
    def books(self):
        self.model.check_books()

    def teardown(self):
        if sys.exc_info()[0] is None and hasattr(self, "model"):  # what has failed is not finished
            self.model.finish_all()
            for told in self.model.told[-3:]:  # what is found in the cache at the end is right as well
                self.model.add((told + TEXTS[2][:10])[: self.model.scheduler.num_blocks * BLOCK - 1], 1)
            self.model.finish_all()


# What a run must have met, each in one schedule of a hundred at least.
MUST_OCCUR = [
    "borrowed",
    "chunked prompt",
    "copy",
    "drop",
    "dropped, to be computed again",
    "ended: abort",
    "ended: length",
    "ended: stop",
    "fork",
    "generated and prompt tokens in a step",
    "goes on from a completion",
    "many generated tokens in a chunk",
    "moves alone",
    "output computed again",
    "preempted by hand",
    "prefix hit",
    "prompt computed again",
    "result after its end",
    "sequence begins on its own",
    "scored",
    "short one ahead of its turn",
    "started over",
    "swap in",
    "swap out",
    "swapped out",
    "token not yet known to the host",
    "whole prompt hit",
]


@pytest.mark.slow
def test_random_schedules():
    num_schedules, schedules_with, times = 0, Counter(), Counter()

    class Counted(RandomSchedules):
        def teardown(self):
            nonlocal num_schedules
            super().teardown()
            if hasattr(self, "model"):
                stats = self.model.scheduler.stats()
                seen = self.model.seen
                seen["swapped out"] = stats["num_swaps"]
                seen["dropped, to be computed again"] = stats["num_recomputes"]
                num_schedules += 1
                times.update(seen)
                schedules_with.update(what for what in seen if seen[what] > 0)

    run_state_machine_as_test(
        Counted,
        settings=settings(
            max_examples=NUM_SCHEDULES,
            stateful_step_count=40,
            derandomize=not THOROUGH,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"\n{num_schedules} schedules; schedules with, and times:")
    for what in sorted(times):
        print(f"{schedules_with[what]:8d} {times[what]:8d}  {what}")
    assert num_schedules >= NUM_SCHEDULES
    assert [what for what in MUST_OCCUR if schedules_with[what] < NUM_SCHEDULES / 100] == []
