"""A short request does not wait for a client's burst, large requests end all the same, and results stay as they are."""

import pytest
from longcat import _testing as testing
from longcat._core import QueueFullError

from support.cache_model import BLOCK, VOCAB, CacheModel
from support.engines import Steps, assert_same, make_engine, sampling

TEXT = [(7 * i + i // 64) % VOCAB for i in range(300)]


def prompt(seed: int, length: int) -> list[int]:
    return [(seed + 3 * i) % VOCAB for i in range(length)]


def steps_to_first_token(model: CacheModel, request: int, most: int) -> int:
    for step in range(1, most + 1):
        model.step(overlap=False)
        if request in model.ended or model.live[request].num_output > 0:
            return step
    raise AssertionError(f"no token within {most} steps")


@pytest.mark.parametrize("num_host_blocks", [0, 32])
def test_many_completions_of_one_prompt(num_host_blocks):
    model = CacheModel(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=17, num_host_blocks=num_host_blocks)
    model.add(prompt(1, 20), 60, n=128)
    for _ in range(3):
        model.step(overlap=False)
    (short,) = model.add(prompt(2, 20), 10)
    assert steps_to_first_token(model, short, 3) <= 3
    while short not in model.ended:
        model.step(overlap=False)
    assert len(model.live) >= 120
    for request in sorted(model.live):
        model.abort(request)


def test_many_prompts_of_one_call():
    """Each is as small as the short request: their group is not."""
    model = CacheModel(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=17)
    first = model.add(prompt(0, 10), 20)[0]
    for i in range(1, 60):
        model.add(prompt(i, 10), 20, group=first)
    for _ in range(3):
        model.step(overlap=False)
    (short,) = model.add(prompt(99, 10), 20)
    assert steps_to_first_token(model, short, 3) <= 3
    model.finish_all()


def test_long_prompts_that_take_all_slots():
    model = CacheModel(max_num_seqs=4, max_num_batched_tokens=16, num_blocks=41, num_host_blocks=40)
    for i in range(8):
        model.add(prompt(i, 250), 60)
    for _ in range(3):
        model.step(overlap=False)
    (short,) = model.add(prompt(99, 8), 5)
    assert steps_to_first_token(model, short, 4) <= 4
    model.finish_all()


def test_long_prompts_that_take_all_blocks():
    """The first in the queue waits for blocks, and the short request needs few."""
    model = CacheModel(max_num_seqs=8, max_num_batched_tokens=64, num_blocks=12)
    for i in range(4):
        model.add(prompt(i, 250), 60)
    for _ in range(3):
        model.step(overlap=False)
    assert model.scheduler.num_waiting > 0
    (short,) = model.add(prompt(99, 20), 5)
    assert steps_to_first_token(model, short, 4) <= 4
    model.finish_all()


def test_the_shortest_prompt_has_a_quarter_of_a_step():
    scheduler = testing.Scheduler(max_num_seqs=8, max_num_batched_tokens=64, num_blocks=40)
    ids = [scheduler.add(prompt(i, length), 5)[0] for i, length in enumerate([250, 250, 250, 250, 100])]
    counts = {chunk["request_id"]: chunk["count"] for chunk in scheduler.schedule()["chunks"]}
    assert [counts[i] for i in ids] == [32, 4, 4, 4, 20]


def test_a_stream_of_short_requests_does_not_starve_a_long_one():
    """A new short request for each that ends, for as long as the long one takes."""
    model = CacheModel(max_num_seqs=2, max_num_batched_tokens=32, num_blocks=12)
    first, second = model.add(prompt(1, 200), 70)[0], model.add(prompt(2, 200), 70)[0]
    shorts = []
    for _ in range(3000):
        if {first, second} <= set(model.ended):
            break
        shorts = [short for short in shorts if short not in model.ended]
        while len(shorts) < 3:
            shorts += model.add(prompt(len(model.ended), 5), 3)
        before = model.live[first].num_output if first in model.live else 0
        model.step(overlap=False)
        if before:
            assert first in model.ended or model.live[first].num_output == before + 1
    assert {first, second} <= set(model.ended)
    model.finish_all()


def test_a_stream_of_short_requests_beside_large_ones_that_take_all_slots():
    """None of the large ones ends meanwhile, so the first in the queue gets no slot in any case."""
    model = CacheModel(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=33, num_host_blocks=16)
    model.add(prompt(1, 20), 340, n=8)
    for _ in range(3):
        model.step(overlap=False)
    for i in range(50):
        (short,) = model.add(prompt(i, 8), 2)
        assert steps_to_first_token(model, short, 3) <= 3
        while short not in model.ended:
            model.step(overlap=False)
    assert len(model.live) == 8
    model.finish_all()


@pytest.mark.parametrize("num_host_blocks", [0, 16])
def test_a_prompt_advances_whatever_short_requests_take_its_slot(num_host_blocks):
    """The prompt takes two steps, and a short request waits after the first. None of its blocks is full by then."""
    model = CacheModel(max_num_seqs=2, max_num_batched_tokens=60, num_blocks=17, num_host_blocks=num_host_blocks)
    model.add(prompt(1, 20), 400)
    (long,) = model.add(prompt(2, 100), 40)
    for _ in range(20):
        if len(model.live) < 4:
            model.add(prompt(3, 5), 2)
        model.step(overlap=False)
    assert model.live[long].num_output > 0
    model.finish_all()


def test_short_requests_pass_the_queue_a_limited_number_of_times():
    """The first in the queue needs nearly all blocks, which short requests keep on taking."""
    model = CacheModel(max_num_seqs=4, max_num_batched_tokens=64, num_blocks=9)
    running = model.add(prompt(1, 100), 200)[0]
    model.step(overlap=False)
    waiting = model.add(prompt(2, 7 * BLOCK), 40)[0]
    ended_before = 0
    while waiting in model.live and model.live[waiting].num_output == 0:
        if running not in model.live:  # another large one, so that there is always one to take a slot from
            running = model.add(prompt(3, 100), 200)[0]
        if len(model.live) < 4:
            model.add(prompt(4, 5), 2)
        model.step(overlap=False)
        ended_before = len(model.ended)
        assert ended_before < 1000
    model.finish_all()


def test_equal_requests_keep_their_order():
    model = CacheModel(max_num_seqs=2, max_num_batched_tokens=64, num_blocks=17)
    ids = [model.add(prompt(i, 20), 20)[0] for i in range(12)]
    model.finish_all()
    assert list(model.ended) == ids and model.scheduler.stats()["num_recomputes"] == 0


def test_completions_count_towards_the_queue():
    scheduler = testing.Scheduler(max_num_queued=100, num_blocks=4)
    scheduler.add([1], 1, n=128)
    with pytest.raises(QueueFullError, match="128 requests are waiting, max_num_queued=100"):
        scheduler.add([1], 1)


def test_one_call_takes_half_of_the_queue():
    scheduler = testing.Scheduler(max_num_queued=100, num_blocks=4)
    [first] = scheduler.add([1], 1)
    for _ in range(49):
        scheduler.add([1], 1, group=first)
    with pytest.raises(QueueFullError, match="50 requests of this call are waiting, half of max_num_queued=100"):
        scheduler.add([1], 1, group=first)
    scheduler.add([1], 1)


def test_results_do_not_depend_on_short_requests(random_checkpoint):
    def requests(steps):
        ids = steps.add([5, 9, 2, 33] * 20, sampling(60, seed=1, temperature=1.0), 12)
        for _ in range(10):
            steps.step()
        for i in range(3):
            ids += steps.add([7, i, 3], sampling(10, seed=i, temperature=1.0))
            steps.step()
        return ids

    disturbed = Steps(make_engine(random_checkpoint, max_num_seqs=3))
    ids = requests(disturbed)
    disturbed.run()
    assert max(disturbed.outcomes[i].stats.num_preemptions for i in ids[:12]) > 0
    alone = Steps(make_engine(random_checkpoint, max_num_seqs=16, enable_prefix_caching=False))
    for mine, theirs in zip(ids, requests(alone), strict=True):
        assert alone.outcomes[theirs].finish_reason is None or alone.outcomes[theirs].stats.num_preemptions == 0
        alone.run()
        found, expected = disturbed.outcomes[mine], alone.outcomes[theirs]
        assert found.token_ids == expected.token_ids and found.finish_reason == expected.finish_reason
        if mine >= 12:
            assert_same(found, expected)
