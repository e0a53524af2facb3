"""Engine.generate as a user meets it."""

import json
import shutil
import threading

import longcat
import numpy as np
import pytest

from support.checkpoints import make_checkpoint

PROMPT = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def engine(tiny):
    with longcat.Engine(tiny) as engine:
        yield engine


def test_one_prompt_one_output(engine):
    out = engine.generate(PROMPT, max_tokens=12, temperature=0)
    assert isinstance(out, longcat.RequestOutput)
    assert str(out) == out.text == engine.decode(out.outputs[0].token_ids)
    assert out.prompt == PROMPT and out.prompt_token_ids == engine.encode(PROMPT)
    assert out.outputs[0].finish_reason == "length" and len(out.outputs[0].token_ids) == 12
    assert 0 < out.metrics.first_token_s <= out.metrics.total_s


def test_list_in_list_out(engine):
    outs = engine.generate([PROMPT, "One day"], max_tokens=3)
    assert [o.prompt for o in outs] == [PROMPT, "One day"]
    assert [len(o.outputs[0].token_ids) for o in engine.generate([PROMPT], max_tokens=3)] == [3]
    assert engine.generate([]) == []


def test_token_ids_in_place_of_text(engine):
    ids = engine.encode(PROMPT)
    by_text = engine.generate(PROMPT, max_tokens=8, temperature=0)
    by_ids = engine.generate(prompt_token_ids=ids, max_tokens=8, temperature=0)
    by_array = engine.generate(prompt_token_ids=np.array(ids), max_tokens=8, temperature=0)
    assert by_ids.outputs[0].token_ids == by_text.outputs[0].token_ids == by_array.outputs[0].token_ids
    assert by_ids.prompt is None and by_ids.text == by_text.text
    assert len(engine.generate(prompt_token_ids=[ids, ids[:2]], max_tokens=2)) == 2


def test_params_as_object_dict_or_keywords(engine):
    params = longcat.SamplingParams(max_tokens=6, temperature=0.9, seed=5)
    texts = {
        str(engine.generate(PROMPT, params)),
        str(engine.generate(PROMPT, {"max_tokens": 6, "temperature": 0.9, "seed": 5})),
        str(engine.generate(PROMPT, max_tokens=6, temperature=0.9, seed=5)),
        str(engine.generate(PROMPT, params, seed=5)),
    }
    assert len(texts) == 1


def test_stream_equals_whole(engine):
    whole = engine.generate(PROMPT, max_tokens=40, seed=3)
    chunks = list(engine.generate(PROMPT, max_tokens=40, seed=3, stream=True))
    assert "".join(c.delta for c in chunks) == whole.text
    assert [i for c in chunks for i in c.token_ids] == whole.outputs[0].token_ids
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].output.outputs == whole.outputs


def test_stream_of_several_prompts(engine):
    prompts = [PROMPT, "One day, a dog", "Tom"]
    whole = engine.generate(prompts, max_tokens=9, temperature=0)
    texts = [""] * 3
    for chunk in engine.generate(prompts, max_tokens=9, temperature=0, stream=True):
        texts[chunk.prompt_index] += chunk.delta
    assert texts == [str(o) for o in whole]


def test_closing_or_dropping_a_stream_frees_its_blocks(engine):
    free = engine.info()["num_free_blocks"]
    stream = engine.generate(PROMPT, max_tokens=500, ignore_eos=True, stream=True)
    next(stream)
    assert engine.info()["num_free_blocks"] < free
    stream.close()
    assert engine.info()["num_free_blocks"] == free
    with pytest.raises(StopIteration):
        next(stream)
    stream = engine.generate(PROMPT, max_tokens=500, ignore_eos=True, stream=True)
    next(stream)
    del stream
    assert engine.info()["num_free_blocks"] == free
    engine.generate(PROMPT, max_tokens=500, stream=True)  # never started
    assert engine.generate("Tom", max_tokens=2).outputs[0].finish_reason == "length"
    assert engine.info()["num_free_blocks"] == free


def test_closing_a_stream_while_its_reader_queues_a_request(tiny, monkeypatch):
    """Another thread closes it then: the reader is at its end, and no request is left."""
    with longcat.Engine(tiny, num_threads=1, max_num_queued=1, max_num_seqs=1) as engine:
        stream = engine.generate([PROMPT] * 20, max_tokens=500, ignore_eos=True, stream=True)
        add, closing = engine._requests.add, threading.Thread(target=stream.close)

        def add_while_closing(*args):
            ids = add(*args)
            if closing.ident is None:
                closing.start()
                closing.join(0.3)
            return ids

        monkeypatch.setattr(engine._requests, "add", add_while_closing)
        list(stream)
        closing.join()
        assert len(engine._requests) == 0


def test_same_seed_same_text_in_any_batch(tiny):
    with longcat.Engine(tiny, max_num_seqs=3) as engine:
        alone = engine.generate(PROMPT, seed=11, max_tokens=20, temperature=1.0).text
        prompts = ["Tom", PROMPT, "One day", PROMPT, "The cat sat"]
        batch = engine.generate(prompts, seed=11, max_tokens=20, temperature=1.0)
        assert batch[1].text == batch[3].text == alone
        assert engine.generate(PROMPT, seed=12, max_tokens=20, temperature=1.0).text != alone


def test_requests_without_a_seed_differ_and_engines_repeat(tiny):
    def texts(seed):
        with longcat.Engine(tiny, seed=seed) as engine:
            return [str(o) for o in engine.generate([PROMPT] * 3, max_tokens=15, temperature=1.0)]

    first = texts(0)
    assert len(set(first)) == 3
    assert texts(0) == first
    assert texts(1) != first


def test_batch_equals_alone_greedy(engine):
    prompts = [PROMPT[: 5 + 3 * i] for i in range(8)]
    alone = [engine.generate(p, max_tokens=15, temperature=0).outputs[0].token_ids for p in prompts]
    batch = [o.outputs[0].token_ids for o in engine.generate(prompts, max_tokens=15, temperature=0)]
    assert batch == alone


def test_small_steps_change_nothing(tiny):
    with longcat.Engine(tiny) as engine:
        expected = engine.generate(PROMPT * 5, max_tokens=10, temperature=0).outputs[0].token_ids
    with longcat.Engine(tiny, max_num_batched_tokens=3, max_num_seqs=2, num_threads=1) as engine:
        outs = engine.generate([PROMPT * 5] * 3, max_tokens=10, temperature=0)
        assert [o.outputs[0].token_ids for o in outs] == [expected] * 3


def test_more_requests_than_the_cache_holds(tiny):
    """Requests wait for blocks; all end."""
    block_bytes = 64 * (5 * 96 * 2 + 4)
    with longcat.Engine(tiny, kv_cache_memory=4 * block_bytes) as engine:  # one is the null block
        assert engine.info()["num_kv_blocks"] == 3
        outs = engine.generate([PROMPT] * 10, max_tokens=50, ignore_eos=True, temperature=0)
        assert {len(o.outputs[0].token_ids) for o in outs} == {50}
        assert len({str(o) for o in outs}) == 1
        with pytest.raises(ValueError, match="the KV cache holds 192"):
            engine.generate(PROMPT, max_tokens=500)


def test_end_token_and_stop_ids(engine):
    out = engine.generate("<longcat_user>Hello!<longcat_assistant>", temperature=0, max_tokens=100)
    completion = out.outputs[0]
    assert completion.finish_reason == "stop" and completion.token_ids[-1] == 2 and completion.stop_reason is None
    assert "</longcat_s>" not in out.text
    stop = completion.token_ids[3]
    short = engine.generate(
        "<longcat_user>Hello!<longcat_assistant>", temperature=0, max_tokens=100, stop_token_ids=[stop]
    ).outputs[0]
    assert short.token_ids == completion.token_ids[: completion.token_ids.index(stop) + 1]
    assert (short.finish_reason, short.stop_reason) == ("stop", stop)
    longer = engine.generate(
        "<longcat_user>Hello!<longcat_assistant>",
        temperature=0,
        max_tokens=len(completion.token_ids) + 5,
        ignore_eos=True,
    ).outputs[0]
    assert longer.finish_reason == "length" and longer.token_ids[: len(completion.token_ids)] == completion.token_ids


def test_context_limit_ends_a_completion(tiny):
    with longcat.Engine(tiny, max_model_len=40) as engine:
        ids = engine.encode(PROMPT)
        out = engine.generate(PROMPT, max_tokens=1000, ignore_eos=True)
        assert len(ids) + len(out.outputs[0].token_ids) == 40
        assert out.outputs[0].finish_reason == "length"
        with pytest.raises(ValueError, match="max_model_len=40"):
            engine.generate(PROMPT * 10)


def test_defaults_come_from_generation_config(tiny, tmp_path):
    def greedy_by_default(config):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(tiny, folder)
        (folder / "generation_config.json").unlink()
        if config is not None:
            (folder / "generation_config.json").write_text(json.dumps(config))
        with longcat.Engine(folder) as engine:
            texts = {engine.generate(PROMPT, max_tokens=12).text for _ in range(4)}
            return texts == {engine.generate(PROMPT, max_tokens=12, temperature=0, repetition_penalty=1).text}

    assert greedy_by_default({"do_sample": False, "temperature": 3.0})
    assert greedy_by_default({"do_sample": True, "top_k": 1})
    assert not greedy_by_default({"do_sample": True, "temperature": 2.0})
    assert not greedy_by_default(None)


@pytest.mark.parametrize(
    "sampling,message",
    [
        (dict(temperature=-1), "temperature=-1"),
        (dict(temperature=float("nan")), "temperature=nan"),
        (dict(top_p=0), "top_p=0"),
        (dict(top_p=1.5), "top_p=1.5"),
        (dict(max_tokens=0), "max_tokens=0"),
        (dict(repetition_penalty=0), "repetition_penalty=0"),
        (dict(stop_token_ids=[999999]), "stop_token_ids=999999"),
    ],
)
def test_bad_parameters(engine, sampling, message):
    with pytest.raises(ValueError, match=message) as error:
        engine.generate(PROMPT, **sampling)
    assert "\n" not in str(error.value)


def test_bad_prompts(engine):
    for prompt_token_ids, message in [
        ([], "no tokens"),
        ([5000], "5000"),
        ([-1], "-1"),
        ([1.5], "1.5"),
        ([2**40], "32 bits"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.generate(prompt_token_ids=prompt_token_ids)
    for call in [dict(), dict(prompts="a", prompt_token_ids=[1]), dict(prompts=[1.5]), dict(prompts=3)]:
        with pytest.raises(TypeError):
            engine.generate(**call)
    with pytest.raises(ValueError, match="no tokens"):
        engine.generate(["fine", ""])
    assert engine.generate("fine", max_tokens=1).outputs[0].finish_reason == "length"  # nothing left behind


def test_unknown_names_are_answered_with_the_nearest(engine, tiny):
    with pytest.raises(TypeError, match='did you mean "temperature"'):
        engine.generate(PROMPT, temprature=0)
    with pytest.raises(TypeError, match='did you mean "max_model_len"'):
        longcat.Engine(tiny, max_model_length=5)
    with pytest.raises(TypeError, match="sampling_params is a int"):
        engine.generate(PROMPT, 5)


def test_engine_arguments(tiny):
    with longcat.Engine(model_path=tiny, context_length=64, max_running_requests=2) as engine:
        assert engine.info()["max_model_len"] == 64
    for arguments, message in [
        (dict(dtype="int3"), 'dtype="int3"'),
        (dict(device="tpu"), 'device="tpu"'),
        (dict(device="cuda:x"), "cuda:x"),
        (dict(num_threads=-1), "num_threads=-1"),
        (dict(max_num_seqs=0), "max_num_seqs=0"),
        (dict(kv_cache_memory="lots"), "lots"),
        (dict(kv_cache_memory=-5), "-5"),
        (dict(kv_cache_memory="infGB"), "infGB"),
        (dict(kv_cache_memory=1.5), "1.5"),
        (dict(max_num_batched_tokens=0), "max_num_batched_tokens=0"),
        (dict(max_num_batched_tokens=3), "max_num_seqs=16"),
        (dict(max_model_len=0), "max_model_len=0"),
        (dict(max_model_len=10**6), "max_position_embeddings=2048"),
    ]:
        with pytest.raises(ValueError, match=message):
            longcat.Engine(tiny, **arguments)
    with pytest.raises(longcat.OutOfMemoryError, match="kv_cache_memory"):
        longcat.Engine(tiny, kv_cache_memory=100)
    with pytest.raises(TypeError, match="path"):
        longcat.Engine()


def test_kv_cache_memory_takes_units(tiny):
    for text, size in [("1MiB", 2**20), ("1 MB", 10**6), (2**20, 2**20), ("0.5MiB", 2**19)]:
        with longcat.Engine(tiny, kv_cache_memory=text) as engine:
            block = 64 * (5 * 96 * 2 + 4)  # a sub-layer more than the model has attentions, for the MTP layer
            assert engine.info()["num_kv_blocks"] == size // block - 1


def test_forward_gives_logits_by_dlpack(engine):
    ids = engine.encode(PROMPT)
    logits = engine.forward(ids)
    assert logits.shape == (len(ids), 2048) and logits.dtype == np.float32
    shared = np.from_dlpack(logits)
    assert np.shares_memory(shared, logits)
    best = int(logits[-1].argmax())
    out = engine.generate(prompt_token_ids=ids, max_tokens=1, temperature=0, repetition_penalty=1)
    assert out.outputs[0].token_ids == [best]
    with pytest.raises(ValueError, match="no tokens"):
        engine.forward([])
    with pytest.raises(ValueError, match="max_model_len"):
        engine.forward([5] * 10**7)


def test_nan_logits_end_the_request_alone(tmp_path):
    """One token's embedding is NaN: requests that meet it end with an error, others go on."""
    from support.checkpoints import read_safetensors, write_safetensors

    make_checkpoint(tmp_path, seed=0, dtype="F32")
    path = tmp_path / "model.safetensors"
    tensors = read_safetensors(path)
    dtype, shape, raw = tensors["model.embed_tokens.weight"]
    width = shape[1] * 4
    poisoned = bytearray(raw)
    poisoned[7 * width : 8 * width] = np.full(shape[1], np.nan, np.float32).tobytes()
    tensors["model.embed_tokens.weight"] = (dtype, shape, bytes(poisoned))
    write_safetensors(path, tensors)
    with longcat.Engine(tmp_path) as engine:
        alone = engine.generate(prompt_token_ids=[5, 6], max_tokens=4, stop_token_ids=[], seed=1).outputs[0]
        bad, good = engine.generate(prompt_token_ids=[[5, 7], [5, 6]], max_tokens=4, seed=1)
        assert (bad.outputs[0].finish_reason, bad.outputs[0].token_ids) == ("error", [])
        assert good.outputs[0].token_ids == alone.token_ids
        with pytest.raises(longcat.Error, match="not finite"):
            engine.score(prompt_token_ids=[[5, 6], [5, 7, 8]])
        assert engine.generate(prompt_token_ids=[5, 7, 8], prompt_logprobs=1, n=2).prompt_logprobs is None


def test_without_a_tokenizer(tmp_path):
    make_checkpoint(tmp_path, seed=0)
    with longcat.Engine(tmp_path) as engine:
        out = engine.generate(prompt_token_ids=[1, 5, 6], max_tokens=3, ignore_eos=True)
        assert len(out.outputs[0].token_ids) == 3 and out.text == ""
        with pytest.raises(longcat.Error, match="tokenizer.json"):
            engine.generate("text")


def test_many_threads_at_once(engine):
    prompts = [f"{PROMPT} {name}" for name in ("Tom", "Lily", "Max", "Mia", "Sam", "Ben")]
    expected = {p: engine.generate(p, max_tokens=25, temperature=0).text for p in prompts}
    results: dict[str, str] = {}

    def work(prompt, stream):
        if stream:
            results[prompt] = "".join(
                c.delta for c in engine.generate(prompt, max_tokens=25, temperature=0, stream=True)
            )
        else:
            results[prompt] = engine.generate(prompt, max_tokens=25, temperature=0).text

    threads = [threading.Thread(target=work, args=(p, i % 2 == 0)) for i, p in enumerate(prompts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_closed_engine(tiny):
    engine = longcat.Engine(tiny)
    stream = engine.generate(PROMPT, stream=True)
    engine.close()
    engine.close()
    for call in (lambda: engine.generate(PROMPT), lambda: engine.forward([1]), lambda: next(stream)):
        with pytest.raises(longcat.Error, match="closed"):
            call()


def test_a_stream_closed_by_another_thread_ends(engine):
    """Between two lines of its reader."""
    import sys

    stream = engine.generate(PROMPT, max_tokens=20, ignore_eos=True, stream=True)

    def trace(frame, event, arg):
        if frame.f_code.co_name == "take" and event == "line" and "step" in frame.f_locals:
            chunk = frame.f_locals.get("chunk")
            if chunk is not None and chunk.finish_reason is not None:
                stream.close()
        return trace

    sys.settrace(trace)
    try:
        chunks = list(stream)
    finally:
        sys.settrace(None)
    assert chunks[-1].finish_reason == "length"
