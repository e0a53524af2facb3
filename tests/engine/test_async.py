"""The asyncio side of Engine: many tasks on one loop, aborts, a full queue, a closed engine."""

import asyncio
import gc
import threading
import time
import warnings

import longcat
import numpy as np
import pytest

PROMPT = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def engine(tiny):
    with longcat.Engine(tiny) as engine:
        yield engine


async def collect(chunks):
    return [chunk async for chunk in chunks]


def all_blocks_are_free(engine) -> bool:
    info = engine.info()
    return info["num_free_blocks"] == info["num_kv_blocks"]


def test_agenerate_equals_generate(engine):
    whole = engine.generate(PROMPT, max_tokens=30, seed=3)
    chunks = asyncio.run(collect(engine.agenerate(PROMPT, max_tokens=30, seed=3)))
    assert "".join(c.delta for c in chunks) == whole.text
    assert chunks[-1].output.outputs == whole.outputs
    by_ids = asyncio.run(collect(engine.agenerate(prompt_token_ids=engine.encode(PROMPT), max_tokens=30, seed=3)))
    assert by_ids[-1].output.text == whole.text


def test_several_completions(engine):
    whole = engine.generate(PROMPT, max_tokens=12, seed=3, n=3, temperature=1.0)
    chunks = asyncio.run(collect(engine.agenerate(PROMPT, max_tokens=12, seed=3, n=3, temperature=1.0)))
    texts = ["".join(c.delta for c in chunks if c.index == i) for i in range(3)]
    assert texts == [completion.text for completion in whole.outputs]


def test_achat_equals_chat(engine):
    messages = [{"role": "user", "content": "Hello! My name is Freya."}]
    whole = engine.chat(messages, temperature=0)
    chunks = asyncio.run(collect(engine.achat(messages, temperature=0)))
    assert chunks[-1].output.message == whole.message
    assert "".join(c.delta for c in chunks) == str(whole)


def test_many_tasks_and_threads(engine):
    """Tasks of two loops and calls of plain threads at once: each gets its own completion, whole."""
    prompts = [f"{PROMPT} {i}" for i in range(24)]
    expected = [engine.generate(p, max_tokens=15, temperature=0).text for p in prompts]
    results: dict[str, list[str]] = {}

    async def many():
        completions = await asyncio.gather(
            *(collect(engine.agenerate(p, max_tokens=15, temperature=0)) for p in prompts)
        )
        return ["".join(c.delta for c in chunks) for chunks in completions]

    def of_loop(name):
        results[name] = asyncio.run(many())

    def of_thread(name):
        results[name] = [str(o) for o in engine.generate(prompts, max_tokens=15, temperature=0)]

    threads = [threading.Thread(target=of_loop, args=(f"loop {i}",)) for i in range(2)]
    threads += [threading.Thread(target=of_thread, args=(f"thread {i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 4
    for name, texts in results.items():
        assert texts == expected, name
    assert all_blocks_are_free(engine)


def test_leaving_the_loop_ends_the_request(engine):
    async def leave():
        async for chunk in engine.agenerate(PROMPT, max_tokens=1000, ignore_eos=True):
            if len(chunk.token_ids):
                break

    asyncio.run(leave())
    assert all_blocks_are_free(engine)


def test_cancelling_a_task_ends_its_request(engine):
    async def cancel():
        task = asyncio.create_task(collect(engine.agenerate(PROMPT, max_tokens=1000, ignore_eos=True)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return all_blocks_are_free(engine)

    assert asyncio.run(cancel())


def test_closing_the_chunks_ends_the_request_at_once(engine):
    messages = [{"role": "user", "content": "Hello!"}]

    async def close(chunks):
        await anext(chunks)
        await chunks.aclose()
        return all_blocks_are_free(engine)

    assert asyncio.run(close(engine.agenerate(PROMPT, max_tokens=1500, ignore_eos=True)))
    assert asyncio.run(close(engine.achat(messages, max_tokens=1500, ignore_eos=True)))


def test_a_stream_collected_at_an_inconvenient_time(engine):
    """Garbage is collected whenever Python likes, so also by a thread that holds the engine's lock."""
    stream = engine.generate(PROMPT, max_tokens=1500, ignore_eos=True, stream=True)
    collected = threading.Event()

    def collect_garbage():
        with engine._requests._lock:
            streams.clear()
        collected.set()

    streams = [stream]
    del stream
    threading.Thread(target=collect_garbage, daemon=True).start()
    assert collected.wait(5)
    assert all_blocks_are_free(engine)


def test_abort_by_name_and_by_number(engine):
    async def by_name():
        task = asyncio.create_task(
            collect(engine.agenerate(PROMPT, max_tokens=1500, ignore_eos=True, request_id="mine"))
        )
        await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="mine"):
            await collect(engine.agenerate(PROMPT, request_id="mine"))
        assert engine.abort("mine") and not engine.abort("yours")
        return await task

    chunks = asyncio.run(by_name())
    assert chunks[-1].finish_reason == "abort" and chunks[-1].output.request_id == "mine"
    assert not engine.abort("mine")

    stream = engine.generate(PROMPT, max_tokens=1500, ignore_eos=True, stream=True)
    first = next(stream)
    assert engine.abort(first.request_id)
    rest = list(stream)
    assert rest[-1].finish_reason == "abort"
    assert rest[-1].output.outputs[0].token_ids[:1] == first.token_ids
    assert all_blocks_are_free(engine)


def test_a_full_queue(tiny):
    """agenerate says so at once; generate waits for its turn."""
    with longcat.Engine(tiny, max_num_seqs=1, max_num_queued=2) as engine:

        async def flood():
            async def one():
                try:
                    return (await collect(engine.agenerate(PROMPT, max_tokens=300, ignore_eos=True)))[-1].finish_reason
                except longcat.QueueFullError as error:
                    assert "max_num_queued=2" in str(error) and "\n" not in str(error)
                    return "full"

            return await asyncio.gather(*(one() for _ in range(10)))

        ends = asyncio.run(flood())
        assert ends.count("full") >= 6 and ends.count("length") == 10 - ends.count("full")
        outs = engine.generate([PROMPT] * 10, max_tokens=5, ignore_eos=True)
        assert {len(o.outputs[0].token_ids) for o in outs} == {5}


def test_closing_the_engine_ends_waiting_tasks(tiny):
    engine = longcat.Engine(tiny)

    async def close_under_way():
        task = asyncio.create_task(collect(engine.agenerate(PROMPT, max_tokens=1500, ignore_eos=True)))
        await asyncio.sleep(0.05)
        await asyncio.get_running_loop().run_in_executor(None, engine.close)
        with pytest.raises(longcat.Error, match="closed"):
            await task
        with pytest.raises(longcat.Error, match="closed"):
            await collect(engine.agenerate(PROMPT))

    asyncio.run(close_under_way())


def test_loops_that_are_gone_are_forgotten(engine):
    for _ in range(5):
        asyncio.run(collect(engine.agenerate(PROMPT, max_tokens=2)))
    gc.collect()
    assert len(engine._loops) <= 1


def test_bad_arguments_come_with_the_first_chunk(engine):
    async def first(**arguments):
        async for _ in engine.agenerate(**arguments):
            pass

    for arguments, error in [
        (dict(prompt=""), ValueError),
        (dict(prompt="a", temperature=-1), ValueError),
        (dict(prompt=["a", "b"]), TypeError),
        (dict(), TypeError),
    ]:
        with pytest.raises(error):
            asyncio.run(first(**arguments))


def test_metrics_and_request_metrics(tiny):
    with longcat.Engine(tiny) as engine:
        before = engine.metrics()
        assert before["num_requests"] == before["num_running"] == before["num_waiting"] == 0
        out = engine.generate(PROMPT * 20, max_tokens=8, ignore_eos=True)
        again = engine.generate(PROMPT * 20, max_tokens=8, ignore_eos=True)
        num_prompt_tokens = len(out.prompt_token_ids)
        assert out.num_cached_tokens == 0 and again.num_cached_tokens == num_prompt_tokens // 64 * 64 > 0
        assert again.outputs == out.outputs or again.text  # sampled with another seed
        m = out.metrics
        assert min(m.queue_ms, m.prefill_ms, m.decode_ms) >= 0 and m.prefill_ms + m.decode_ms < 1000 * m.total_s + 1
        after = engine.metrics()
        assert after["num_requests"] == after["num_finished_length"] == 2
        assert after["num_prompt_tokens"] == 2 * num_prompt_tokens and after["num_generated_tokens"] == 16
        assert after["prefix_cache_queries"] == 2 * num_prompt_tokens
        assert after["prefix_cache_hits"] == again.num_cached_tokens
        assert after["num_cached_blocks"] == num_prompt_tokens // 64
        engine.reset_prefix_cache()
        assert engine.metrics()["num_cached_blocks"] == 0
        assert engine.generate(PROMPT * 20, max_tokens=1).num_cached_tokens == 0


def test_request_metrics_of_a_completion_that_ends_at_a_string(engine):
    text = engine.generate(PROMPT * 20, max_tokens=20, temperature=0, ignore_eos=True).text
    out = engine.generate(PROMPT * 20, max_tokens=20, temperature=0, ignore_eos=True, stop=text[8:12])
    assert out.outputs[0].finish_reason == "stop" and out.outputs[0].stop_reason == text[8:12]
    assert out.num_cached_tokens == len(out.prompt_token_ids) // 64 * 64
    assert out.metrics.prefill_ms > 0 and out.metrics.decode_ms > 0


def test_cached_tokens_are_those_found_in_the_cache(engine):
    """What completions to one prompt share is not found in the cache: it is computed by the first."""
    for cached in (False, True):
        out = engine.generate("Metrics. " * 50, n=3, max_tokens=4)
        assert out.num_cached_tokens == cached * (len(out.prompt_token_ids) // 64 * 64)


def test_a_mask_that_hangs_ends_its_request_alone(tiny):
    release = threading.Event()
    with longcat.Engine(tiny, mask_timeout=0.3) as engine:
        expected = engine.generate(PROMPT, max_tokens=30, temperature=0).text
        ends = {}

        def hang():
            out = engine.generate(PROMPT, max_tokens=5, token_mask=lambda ids: release.wait(20) and None)
            ends["hung"] = out.outputs[0]

        threads = [threading.Thread(target=hang) for _ in range(3)]  # more than there are threads for masks
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        assert engine.generate(PROMPT, max_tokens=30, temperature=0).text == expected
        for thread in threads:
            thread.join(timeout=10)
        assert time.perf_counter() - start < 8
        assert ends["hung"].finish_reason == "error" and "mask" in ends["hung"].error
        everything = engine.generate(PROMPT, max_tokens=4, token_mask=lambda ids: np.ones(2048, bool), ignore_eos=True)
        assert len(everything.outputs[0].token_ids) == 4
        assert all_blocks_are_free(engine)
        release.set()


def test_masks_may_take_for_ever(tiny):
    def slow(ids):
        time.sleep(0.02)

    for mask_timeout in (float("inf"), 1e300):
        with longcat.Engine(tiny, mask_timeout=mask_timeout) as engine:
            completion = engine.generate(PROMPT, max_tokens=3, ignore_eos=True, token_mask=slow).outputs[0]
            assert (completion.finish_reason, completion.error) == ("length", None)


def test_no_mask_thread_is_lost_to_a_fast_core(tiny):
    """The core may ask for a request's next mask before the thread that gave it the last is back."""

    class SlowToReturn:
        def __init__(self, core):
            self.fail, self._set_mask = core.fail, core.set_mask

        def set_mask(self, core_id, num_output_tokens, words):
            known = self._set_mask(core_id, num_output_tokens, words)
            if num_output_tokens == 0:
                assert second.wait(5)
            while num_output_tokens == 1 and core_id in masks._requests:
                time.sleep(0.001)
            return known

    def nothing_forbidden(ids):
        if len(ids) == 1:
            second.set()
            time.sleep(0.05)  # the other thread comes back meanwhile

    with longcat.Engine(tiny, mask_timeout=1) as engine:
        masks = engine._requests.mask_filler()
        masks._core = SlowToReturn(engine._core)
        for _ in range(5):
            second = threading.Event()
            completion = engine.generate(PROMPT, max_tokens=2, ignore_eos=True, token_mask=nothing_forbidden).outputs[0]
            assert completion.finish_reason == "length", completion.error


def test_an_engine_that_closes_first_starts_no_mask_threads(tiny):
    """The first request with a mask may have been checked, and be on its way to the core, when the engine closes."""
    engine = longcat.Engine(tiny, num_threads=1)
    add = engine._requests.add

    def close_and_add(*args):
        engine.close()
        return add(*args)

    engine._requests.add = close_and_add
    before = threading.active_count()
    with pytest.raises(longcat.Error, match="this engine is closed"):
        engine.generate(PROMPT, max_tokens=1, token_mask=lambda ids: None)
    assert not [thread for thread in threading.enumerate()[before:] if thread.name == "longcat-masks"]


def test_an_error_says_why(engine):
    def broken(ids):
        raise RuntimeError("no grammar")

    with pytest.warns(UserWarning, match="no grammar"):
        completion = engine.generate(PROMPT, max_tokens=5, token_mask=broken).outputs[0]
    assert completion.finish_reason == "error" and "no grammar" in completion.error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mask_that_fails_where_warnings_are_errors(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        completion = engine.generate(PROMPT, max_tokens=5, token_mask=lambda ids: 1 / 0).outputs[0]
    assert completion.finish_reason == "error" and "ZeroDivisionError" in completion.error


def test_the_engine_runs_ahead_of_its_reader(engine):
    """Tokens are computed whether or not anybody takes them."""
    stream = engine.generate(PROMPT, max_tokens=50, ignore_eos=True, stream=True)
    next(stream)
    deadline = time.monotonic() + 20
    while engine.metrics()["num_running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.metrics()["num_running"] == 0
    assert sum(len(c.token_ids) for c in stream) == 49


def test_a_request_may_be_awaited(engine):
    messages = [{"role": "user", "content": "Hello! My name is Freya."}]
    options = {"max_tokens": 12, "temperature": 0}

    async def ask():
        output = await engine.agenerate(PROMPT, **options)
        reply = await engine.achat(messages, **options)
        both = await asyncio.gather(engine.agenerate({"prompt": PROMPT}, **options), engine.achat(messages, **options))
        begun = engine.agenerate(PROMPT, **options)
        first = await anext(begun)
        rest = await begun
        again = await begun
        return output, reply, both, first, rest, again

    output, reply, both, first, rest, again = asyncio.run(ask())
    whole = engine.generate(PROMPT, **options)
    assert isinstance(output, longcat.RequestOutput) and output.outputs == whole.outputs
    assert isinstance(reply, longcat.ChatOutput) and reply.message == engine.chat(messages, **options).message
    assert both[0].outputs == whole.outputs and both[1].message == reply.message
    assert whole.text.startswith(first.delta) and rest.outputs == whole.outputs and again is rest


def test_awaiting_raises_what_iterating_raises(engine):
    async def ask(chunks):
        return await chunks

    for chunks in (engine.agenerate(PROMPT, temprature=1), engine.achat([{"role": "user"}], temprature=1)):
        with pytest.raises(TypeError, match='did you mean "temperature"'):
            asyncio.run(ask(chunks))

    async def closed():
        chunks = engine.agenerate(PROMPT, max_tokens=50)
        await chunks.aclose()
        return await chunks

    with pytest.raises(longcat.Error, match="closed before their last one"):
        asyncio.run(closed())


def test_cancelling_an_awaited_request_ends_it(engine):
    async def cancel():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.agenerate(PROMPT, max_tokens=1500, ignore_eos=True), 0.05)
        return all_blocks_are_free(engine)

    assert asyncio.run(cancel())
