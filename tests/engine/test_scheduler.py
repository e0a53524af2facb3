"""Random schedules of the scheduler and its blocks without a model: nothing leaks, nothing is wrongly shared, all end.

LONGCAT_THOROUGH=1 runs 2,000 random schedules of other seeds each time; the usual run is shorter and always the same.
"""

import os

import pytest
from longcat._core import OutOfMemoryError, QueueFullError, testing

from engine.cache_model import BLOCK, VOCAB, CacheModel

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


def test_samples_for_which_there_is_no_place_begin_later():
    model = model_with(max_num_seqs=2)
    model.add(TEXTS[0][:100], 5, n=4)
    model.step()
    assert (model.scheduler.num_running, model.scheduler.num_waiting) == (2, 2)
    model.finish_all()
    assert model.seen["fork"] == 1 and model.seen["sample begins on its own"] == 2


def test_samples_of_an_aborted_one_begin_on_their_own():
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


def test_more_requests_than_may_queue():
    scheduler = testing.Scheduler(max_num_queued=2, num_blocks=4)
    scheduler.add([1], 1)
    scheduler.add([1], 1)
    with pytest.raises(QueueFullError, match="max_num_queued=2"):
        scheduler.add([1], 1)


@pytest.mark.parametrize("may_swap", [False, True])
def test_last_token_alone_is_planned_when_its_sequence_comes_back(may_swap):
    """With nothing under way an empty plan puts the engine to sleep, and nobody would wake it."""
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
