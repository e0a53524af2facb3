"""Several ranks serve a crowd of requests as one rank does: rank 0 plans, the others carry it out."""

import threading
import time

import numpy as np
import pytest
from longcat import _core

from support.checkpoints import SPARSE_VARIANTS, VARIANTS, make_checkpoint, random_token_ids
from support.engines import sampling
from support.ranks import ThreadJob, all_well, on_ranks

TINY = {"num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "zero_expert_num": 4}
LAYOUTS = [(2, 1), (2, 4), (4, 2)]


@pytest.fixture(scope="module", params=["lite", "sparse"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    shape = (VARIANTS | SPARSE_VARIANTS)[request.param].get("config_overrides", {})
    make_checkpoint(path, seed=6, mtp=True, config_overrides=shape | TINY)
    return str(path)


def job(folder, tp, ep=1, **options) -> ThreadJob:
    return ThreadJob(folder, tp, ep, **{"dtype": "f32", "max_num_batched_tokens": 64} | options)


def biased(params: _core.SamplingParams, bias: dict[int, float]) -> _core.SamplingParams:
    params.set_logit_bias(bias)
    return params


def requests() -> list[tuple[list[int], _core.SamplingParams, int]]:
    """(prompt, parameters, n): every way to draw."""
    shared = random_token_ids(1, 130)
    return [
        (random_token_ids(2, 10), sampling(30), 1),
        (random_token_ids(3, 200), sampling(20, seed=1, temperature=0.8, top_k=4, top_p=0.95), 1),
        (shared, sampling(25, seed=2, temperature=1.0, logprobs=5), 3),
        ([*shared[:128], 9], sampling(25, seed=3, temperature=0.7, repetition_penalty=1.06, min_p=0.05), 1),
        (random_token_ids(4, 90), sampling(10, prompt_logprobs=3, logprobs=0), 1),
        (random_token_ids(5, 65), sampling(0, prompt_logprobs=2), 1),
        (random_token_ids(6, 5), biased(sampling(20, presence_penalty=0.5, frequency_penalty=0.3), {7: 2.5}), 2),
        (random_token_ids(7, 40), sampling(20, seed=9, temperature=1.2, allowed_token_ids=list(range(3, 90, 3))), 1),
        (random_token_ids(8, 33), sampling(20, bad_words=[[5], [7, 8]], stop_token_ids=[50], min_tokens=5), 1),
        (random_token_ids(9, 64), sampling(20, seed=4, temperature=0.9), 4),
    ]


class Completion:
    def __init__(self):
        self.token_ids, self.logprobs, self.prompt_logprobs, self.finish_reason = [], [], [], None


def run(leader, crowd, doomed=()) -> list[Completion]:
    """All at once, while the requests in `doomed` are aborted one after the other; the completions in their order."""
    completions: dict[int, Completion] = {}
    for prompt, params, n in crowd:
        first = leader.add_request(prompt, params, n)
        completions |= {request_id: Completion() for request_id in range(first, first + n)}
    doomed = list(doomed)
    while leader.has_work():
        for output in leader.step():
            assert not output.error, output.error
            if (completion := completions.get(output.request_id)) is None:
                continue
            if output.token_id >= 0:
                completion.token_ids.append(output.token_id)
            completion.logprobs += [output.logprobs] if output.logprobs else []
            completion.prompt_logprobs += output.prompt_logprobs
            completion.finish_reason = output.finish_reason
        if doomed:
            leader.abort(doomed.pop())
    return list(completions.values())


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
        for field in ("logprobs", "prompt_logprobs"):
            for x, y in zip(getattr(a, field), getattr(b, field), strict=True):
                assert (x.ids, x.rank) == (y.ids, y.rank)
                assert np.allclose(x.logprobs, y.logprobs, atol=1e-4)


@pytest.fixture(scope="module")
def expected(folder):
    with job(folder, 1, max_num_seqs=8) as one:
        return run(one.leader, requests())


@pytest.mark.parametrize("tp, ep", LAYOUTS)
@pytest.mark.parametrize("overlap", [False, True])
def test_a_crowd(folder, expected, tp, ep, overlap):
    with job(folder, tp, ep, max_num_seqs=8, overlap=overlap) as ranks:
        assert_same(run(ranks.leader, requests()), expected)
        hits = ranks.leader.metrics()["prefix_cache_hits"]
        assert_same(run(ranks.leader, requests()), expected)  # most prompts are in the cache
        assert ranks.leader.metrics()["prefix_cache_hits"] > hits


@pytest.mark.parametrize("method", ["ngram", "mtp"])
@pytest.mark.parametrize("tp, ep", [(2, 4), (2, 1)])
def test_draft_tokens(folder, expected, method, tp, ep):
    with job(folder, tp, ep, max_num_seqs=8, speculation=(method, 3, 3, 1, False, 0)) as ranks:
        assert_same(run(ranks.leader, requests()), expected)
        assert ranks.leader.metrics()["num_draft_tokens"] > 0


@pytest.mark.parametrize("max_num_seqs", [1, 3, 7])
def test_fewer_rows_than_ranks(folder, expected, max_num_seqs):
    """Logits of one row on four ranks, of three, of two each."""
    with job(folder, 4, max_num_seqs=max_num_seqs) as ranks:
        assert_same(run(ranks.leader, requests()), expected)


@pytest.mark.parametrize("swap_memory", [1 << 26, 0])
def test_preempted(folder, expected, swap_memory):
    """A cache of eight blocks: blocks go to host memory and back on every rank, or are computed again."""
    with job(folder, 1) as one:
        block = one.leader.info()["kv_cache_bytes"] // (one.leader.info()["num_kv_blocks"] + 1)
    with job(folder, 2, 4, max_num_seqs=8, kv_cache_memory=9 * block, swap_memory=swap_memory) as ranks:
        assert_same(run(ranks.leader, requests()), expected)
        metrics = ranks.leader.metrics()
        assert metrics["num_swaps" if swap_memory else "num_recomputes"] > 0


def test_among_aborts(folder, expected):
    with job(folder, 2, max_num_seqs=16) as ranks:
        others = [ranks.leader.add_request(random_token_ids(20 + i, 150), sampling(60)) for i in range(4)]
        others.append(ranks.leader.add_request(random_token_ids(30, 70), sampling(60), 2, _core.OutputQueue()))
        assert_same(run(ranks.leader, requests(), doomed=others), expected)


def test_masks(folder):
    """A constrained request waits for its masks on rank 0; the others get them with the plan."""
    params = sampling(8, constrained=True)
    allowed = [3, 40, 41, 100]
    mask = [sum(1 << (i - 32 * word) for i in allowed if i // 32 == word) for word in range(4)]

    def completion(ranks):
        leader, token_ids = ranks.leader, []
        request_id = leader.add_request(random_token_ids(4, 20), params)
        while leader.has_work():
            leader.set_mask(request_id, len(token_ids), mask)
            token_ids += [output.token_id for output in leader.step()]
        return token_ids

    with job(folder, 1, overlap=False) as one:
        expected = completion(one)
    assert len(expected) == 8 and set(expected) <= set(allowed)
    with job(folder, 4, 2, overlap=False) as ranks:
        assert completion(ranks) == expected


def test_the_engines_own_thread(folder, expected):
    """Requests by queues, from several threads, with forward passes between."""
    with job(folder, 2, 4, max_num_seqs=8) as ranks:
        leader = ranks.leader
        leader.start()
        logits = []

        def ask(prompt, params, n, completions):
            queue, arrived = _core.OutputQueue(), []
            first = leader.add_request(prompt, params, n, queue)
            while sum(a.finish_reason is not None for a in completions) < n:
                assert queue.wait(arrived)
                for output in arrived:
                    completion = completions[output.request_id - first]
                    if output.token_id >= 0:
                        completion.token_ids.append(output.token_id)
                    completion.finish_reason = output.finish_reason
                arrived.clear()

        crowd = requests()
        completions = [[Completion() for _ in range(n)] for _, _, n in crowd]
        threads = [threading.Thread(target=ask, args=(*r, a)) for r, a in zip(crowd, completions, strict=True)]
        threads.append(threading.Thread(target=lambda: logits.append(leader.forward(crowd[1][0]))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        found = [a.token_ids for group in completions for a in group]
        assert found == [a.token_ids for a in expected]
        assert logits[0].shape == (200, 128)


def collect(engine, crowd) -> list[Completion]:
    """Makes the requests by queues, as a script does, and waits for all completions."""
    groups = []
    for prompt, params, n in crowd:
        queue = _core.OutputQueue()
        groups.append((engine.add_request(prompt, params, n, queue), n, queue))
    completions = []
    for first, n, queue in groups:
        own, arrived = [Completion() for _ in range(n)], []
        while any(completion.finish_reason is None for completion in own):
            assert queue.wait(arrived), "the engine has ended"
            for output in arrived:
                completion = own[output.request_id - first]
                completion.token_ids += [output.token_id] if output.token_id >= 0 else []
                completion.logprobs += [output.logprobs] if output.logprobs else []
                completion.prompt_logprobs += output.prompt_logprobs
                completion.finish_reason = output.finish_reason
            arrived.clear()
        completions += own
    return completions


@pytest.mark.parametrize("late", [None, 0, 1, 2])
def test_every_rank_may_ask_alike(folder, expected, late):
    """The same requests on all ranks, one of which comes late: all get rank 0's completions, each in full."""
    with job(folder, 2, 4, max_num_seqs=8) as ranks:
        ranks.leader.start()

        def ask(communicator):
            if communicator.rank == late:
                time.sleep(0.5)
            return collect(ranks.engines[communicator.rank], requests())

        for completions in all_well(on_ranks(4, ask)):
            assert_same(completions, expected)


def test_a_rank_may_leave_a_request(folder, expected):
    """Its caller wants no more; on the other ranks it goes on."""
    with job(folder, 2, max_num_seqs=8) as ranks:
        queue = _core.OutputQueue()
        first = ranks.engines[1].add_request(*requests()[0], queue)
        assert ranks.engines[1].abort(first) and not ranks.engines[1].abort(first)
        arrived = []
        assert queue.wait(arrived) and arrived[-1].finish_reason == "abort"
        ranks.leader.start()
        assert_same(collect(ranks.leader, requests()), expected)


def test_only_rank_0_computes_on_demand(folder):
    with job(folder, 2) as ranks:
        for ask in (lambda e: e.add_request([1, 2], sampling(3)), lambda e: e.forward([1, 2]), lambda e: e.step()):
            with pytest.raises(_core.Error, match="this is rank 1, which follows rank 0: ask that one"):
                ask(ranks.engines[1])


def test_a_failure_ends_all_ranks(folder):
    ranks = job(folder, 4)
    ranks.leader.start()
    queue, arrived = _core.OutputQueue(), []
    ranks.leader.add_request([1, 2, 3], sampling(300), 1, queue)
    time.sleep(0.05)
    ranks.engines[2].abort_ranks("rank 2 is gone")
    began = time.monotonic()
    while queue.wait(arrived) and arrived[-1].finish_reason is None:
        pass
    assert time.monotonic() - began < 5
    assert arrived[-1].finish_reason == "error" and "rank 2 is gone" in arrived[-1].error
    assert "rank 2 is gone" in ranks.leader.failure()
    with pytest.raises(_core.Error, match="rank 2 is gone"):
        ranks.leader.add_request([1], sampling(3))
    for engine in ranks.engines[1:]:
        with pytest.raises(_core.Error, match="rank 2 is gone"):
            engine.join()
    for result in on_ranks(4, lambda r: ranks.engines[r.rank].close()):
        assert result is None


def test_a_rank_that_cannot_load_ends_the_others(folder, tmp_path):
    options = _core.EngineOptions()
    options.tensor_parallel_size = 2
    paths = [folder, str(tmp_path / "nothing")]
    first, second = on_ranks(2, lambda ranks: _core.Engine(paths[ranks.rank], options, communicator=ranks))
    assert "rank 1 failed: [config]" in str(first) and str(second).startswith("[config]")


@pytest.mark.parametrize("change", ["values", "config"])
def test_checkpoints_that_differ_are_refused(folder, tmp_path, change):
    overrides = TINY | ({"rms_norm_eps": 3e-5} if change == "config" else {})
    make_checkpoint(tmp_path, seed=7 if change == "values" else 6, config_overrides=overrides)
    options = _core.EngineOptions()
    options.tensor_parallel_size = 2
    paths = [folder, str(tmp_path)]
    results = on_ranks(2, lambda ranks: _core.Engine(paths[ranks.rank], options, communicator=ranks))
    for result in results:
        assert "[parallel] rank 1 has other checkpoint files than rank 0: give all ranks the same" in str(result)


def test_options_that_differ_are_refused(folder):
    def load(ranks):
        options = _core.EngineOptions()
        options.tensor_parallel_size = 2
        options.max_num_seqs = 4 + ranks.rank
        return _core.Engine(folder, options, communicator=ranks)

    for result in on_ranks(2, load):
        assert "[parallel] rank 1 has other options than rank 0" in str(result)


def test_a_job_of_another_size_is_refused(folder):
    def load(ranks):
        options = _core.EngineOptions()
        options.tensor_parallel_size = 4
        return _core.Engine(folder, options, communicator=ranks)

    for result in on_ranks(2, load):
        assert isinstance(result, ValueError)
        assert "are 4 ranks, and this job has 2: start it with mpirun -n 4" in str(result)
