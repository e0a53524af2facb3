"""Every sampling parameter through Engine.generate."""

import threading
import warnings

import longcat
import numpy as np
import pytest
from longcat.engine.request import StopStrings

PROMPT = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def engine(tiny):
    with longcat.Engine(tiny) as engine:
        yield engine


@pytest.fixture(scope="module")
def greedy(engine):
    return engine.generate(PROMPT, max_tokens=40, temperature=0, repetition_penalty=1)


def same(engine, **sampling):
    return engine.generate(PROMPT, **{"max_tokens": 40, "temperature": 0, "repetition_penalty": 1, **sampling})


def test_n_completions(engine):
    out = engine.generate(PROMPT, n=4, seed=7, temperature=1.0, max_tokens=12)
    assert [a.index for a in out.outputs] == [0, 1, 2, 3]
    assert len({a.text for a in out.outputs}) == 4
    again = engine.generate(["Tom", PROMPT], n=4, seed=7, temperature=1.0, max_tokens=12)[1]
    assert [a.text for a in again.outputs] == [a.text for a in out.outputs]
    assert out.outputs[0].text == engine.generate(PROMPT, seed=7, temperature=1.0, max_tokens=12).text


def test_n_completions_streamed(engine):
    whole = engine.generate([PROMPT, "Tom"], n=2, seed=3, max_tokens=9)
    texts = {}
    outputs = []
    for chunk in engine.generate([PROMPT, "Tom"], n=2, seed=3, max_tokens=9, stream=True):
        key = (chunk.prompt_index, chunk.index)
        texts[key] = texts.get(key, "") + chunk.delta
        if chunk.output:
            outputs.append(chunk.output)
    assert texts == {(p, a.index): a.text for p, out in enumerate(whole) for a in out.outputs}
    assert sorted(o.prompt for o in outputs) == sorted([PROMPT, "Tom"])


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings(engine, greedy, include):
    words = greedy.text.split(" ")
    stop = words[5] + " " + words[6]
    completion = same(engine, stop=["never there", stop], include_stop_str_in_output=include).outputs[0]
    end = greedy.text.index(stop)
    assert completion.text == greedy.text[: end + len(stop) if include else end]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert engine.info()["num_free_blocks"] == engine.info()["num_kv_blocks"]
    chunks = list(
        engine.generate(
            PROMPT,
            max_tokens=40,
            temperature=0,
            repetition_penalty=1,
            stop=stop,
            include_stop_str_in_output=include,
            stream=True,
        )
    )
    assert "".join(c.delta for c in chunks) == completion.text


def test_stop_string_matcher_equals_search():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = "".join(rng.choice(list("ab"), int(rng.integers(0, 30))))
        strings = ["".join(rng.choice(list("ab"), int(rng.integers(1, 6)))) for _ in range(int(rng.integers(1, 4)))]
        matcher, emitted, position = StopStrings(strings), "", 0
        while position < len(text):
            size = int(rng.integers(1, 4))
            emitted += matcher.push(text[position : position + size])
            position += size
            if matcher.found:
                break
        emitted += matcher.finish()
        seen = text[:position]
        starts = [seen.find(s) for s in strings if s in seen]
        assert (matcher.found is not None) == bool(starts)
        assert emitted == (seen[: min(starts)] if starts else seen)


def test_min_tokens(engine):
    prompt = "<longcat_user>Hello!<longcat_assistant>"
    short = engine.generate(prompt, temperature=0, max_tokens=60).outputs[0]
    n = len(short.token_ids)
    long = engine.generate(prompt, temperature=0, max_tokens=60, min_tokens=n + 3).outputs[0]
    assert len(long.token_ids) >= n + 3
    assert 2 not in long.token_ids[: n + 3]
    text = engine.generate(prompt, temperature=0, max_tokens=20, min_tokens=10, stop=" ", ignore_eos=True).outputs[0]
    assert len(text.token_ids) >= 10


def test_logit_bias_and_allowed_ids(engine, greedy):
    first = greedy.outputs[0].token_ids[0]
    assert same(engine, logit_bias={first: -100.0}).outputs[0].token_ids[0] != first
    assert same(engine, logit_bias={77: 1000.0}, max_tokens=3).outputs[0].token_ids == [77] * 3
    assert set(same(engine, allowed_token_ids=[50, 60], max_tokens=9).outputs[0].token_ids) <= {50, 60}


def test_bad_words(engine, greedy):
    word = greedy.text.split()[2]
    assert word in greedy.text
    assert f" {word}" not in same(engine, bad_words=[word]).text


def test_penalties_change_repetition(engine):
    prompt = "the the the the the the the the"
    plain = (
        engine.generate(prompt, temperature=0, repetition_penalty=1, max_tokens=60, ignore_eos=True)
        .outputs[0]
        .token_ids
    )
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 5.0}):
        kwargs = {"repetition_penalty": 1.0, **penalty}
        ids = engine.generate(prompt, temperature=0, max_tokens=60, ignore_eos=True, **kwargs).outputs[0].token_ids
        assert len(set(ids)) > len(set(plain))


def test_logprobs(tiny, engine, greedy):
    assert same(engine, logprobs=3, max_tokens=6).outputs[0].token_ids == greedy.outputs[0].token_ids[:6]
    with longcat.Engine(tiny, dtype="float32") as exact_engine:  # bf16 rounds prompts and generated tokens differently
        out = same(exact_engine, logprobs=3, max_tokens=6)
        completion = out.outputs[0]
        logits = exact_engine.forward(out.prompt_token_ids + completion.token_ids)
    logits = logits[len(out.prompt_token_ids) - 1 : -1].astype(np.float64)
    exact = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    for row, (token_id, entry) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
        assert len(entry) == 3 and entry[token_id].rank == 1  # greedy: the token is among its best three
        assert list(entry)[0] == token_id
        for other, logprob in entry.items():
            assert logprob.logprob == pytest.approx(exact[row, other], abs=1e-4)
            assert logprob.decoded_token == engine.decode([other], skip_special_tokens=False)
    assert completion.cumulative_logprob == pytest.approx(
        sum(exact[i, t] for i, t in enumerate(completion.token_ids)), abs=1e-3
    )
    assert len(same(engine, logprobs=0, max_tokens=2).outputs[0].logprobs[0]) == 1


@pytest.mark.parametrize("chunk", [3, 512])
def test_prompt_logprobs_and_score(tiny, chunk):
    with longcat.Engine(tiny, max_num_batched_tokens=chunk, max_num_seqs=2) as engine:
        text = PROMPT + " little girl named Lily."
        out = engine.generate(text, prompt_logprobs=2, max_tokens=1)
        ids = out.prompt_token_ids
        logits = engine.forward(ids)[:-1].astype(np.float64)
        exact = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert out.prompt_logprobs[0] is None and len(out.prompt_logprobs) == len(ids)
        for i, entry in enumerate(out.prompt_logprobs[1:]):
            assert entry[ids[i + 1]].logprob == pytest.approx(exact[i, ids[i + 1]], abs=1e-4)
        score = engine.score(text)
        assert score.token_ids == ids
        assert score.logprobs == pytest.approx([exact[i, t] for i, t in enumerate(ids[1:])], abs=1e-4)
        assert engine.score([text, "Tom"])[0].total == score.total
        assert engine.score("a").logprobs == []


def test_token_mask(engine):
    seen = []

    def only_digits_then_end(token_ids):
        seen.append(list(token_ids))
        allowed = np.zeros(2048, bool)
        allowed[[2] if len(token_ids) == 4 else digits] = True
        return allowed

    digits = [engine.encode(d)[0] for d in "0123456789"]
    completion = engine.generate(PROMPT, token_mask=only_digits_then_end, max_tokens=30).outputs[0]
    assert completion.text.isdigit() and len(completion.text) == 4
    assert completion.finish_reason == "stop"
    assert seen == [completion.token_ids[:i] for i in range(5)]


def test_token_mask_as_words_and_none(engine, greedy):
    words = np.full(64, 0xFFFFFFFF, np.uint32)
    assert same(engine, token_mask=lambda ids: words).text == greedy.text
    assert same(engine, token_mask=lambda ids: None).text == greedy.text


@pytest.mark.parametrize("mask", [np.zeros(2048, bool), np.zeros(3, bool), "nonsense"])
def test_a_mask_that_fails_ends_its_request_alone(engine, greedy, mask):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = engine.generate(PROMPT, token_mask=lambda ids: mask, max_tokens=5, stream=True)
        assert same(engine).text == greedy.text
        assert [c.finish_reason for c in stream] == ["error"]
    wrong_shape = getattr(mask, "shape", None) != (2048,)  # the other one allows nothing
    assert any("token_mask" in str(w.message) for w in caught) == wrong_shape


@pytest.mark.parametrize("min_tokens", [0, 3, 5, 7])
def test_a_stop_string_across_min_tokens(engine, greedy, min_tokens):
    """It may begin before min_tokens, if it ends after."""
    ids = greedy.outputs[0].token_ids
    stop = engine.decode(ids[3:8])
    completion = same(engine, stop=stop, min_tokens=min_tokens).outputs[0]
    assert completion.stop_reason == stop
    assert completion.text == engine.decode(ids[:3])


def test_an_interrupt_loses_no_token(engine, greedy, monkeypatch):
    """Interrupted between lines of Python, a stream that is read on misses no token."""
    import sys

    lines = 0

    def trace(frame, event, arg):
        nonlocal lines
        if event == "line" and frame.f_code.co_name == "_next_chunk":
            lines += 1
            if lines % 17 == 0:
                raise KeyboardInterrupt
        return trace

    stream = engine.generate(PROMPT, max_tokens=40, temperature=0, repetition_penalty=1, stream=True)
    [completion] = stream._open.values()
    interrupts = 0
    while True:
        sys.settrace(trace)
        try:
            chunk = next(stream, None)
        except KeyboardInterrupt:
            interrupts += 1
            continue
        finally:
            sys.settrace(None)
        if chunk is None:
            break
    assert interrupts > 3
    # A token may be taken twice when the interrupt falls between taking it and noting that; none may be missing.
    taken = iter(completion.output.token_ids)
    assert all(token_id in taken for token_id in greedy.outputs[0].token_ids)
    assert engine.info()["num_free_blocks"] == engine.info()["num_kv_blocks"]


def test_two_threads_share_a_stream(engine, greedy):
    stream = engine.generate(PROMPT, max_tokens=40, temperature=0, repetition_penalty=1, stream=True)
    chunks = []

    def read():
        for chunk in stream:
            chunks.append(chunk)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(len(c.token_ids) for c in chunks) == len(greedy.outputs[0].token_ids)


def test_closing_a_stream_from_another_thread(engine):
    stream = engine.generate(PROMPT * 20, max_tokens=400, ignore_eos=True, stream=True)
    ends = []

    def read():
        for _ in stream:
            pass
        ends.append("stopped")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    stream.close()
    thread.join(timeout=30)
    assert ends == ["stopped"]
    assert engine.info()["num_free_blocks"] == engine.info()["num_kv_blocks"]


def test_prompt_logprobs_with_several_completions(engine):
    out = engine.generate(PROMPT, n=3, prompt_logprobs=1, max_tokens=2)
    assert len(out.prompt_logprobs) == len(out.prompt_token_ids)
    assert engine.generate(prompt_token_ids=[5], prompt_logprobs=0, max_tokens=1).prompt_logprobs == [None]


def test_a_prompt_that_fills_the_context_can_be_scored(tiny):
    with longcat.Engine(tiny, max_model_len=16) as engine:
        assert len(engine.score(prompt_token_ids=list(range(100, 116))).logprobs) == 15
        with pytest.raises(ValueError, match="max_model_len=16"):
            engine.score(prompt_token_ids=list(range(100, 117)))


@pytest.mark.parametrize(
    "sampling,message",
    [
        (dict(temperature="a"), "temperature='a'"),
        (dict(temperature=1e39), "temperature=1e\\+39"),
        (dict(seed=1.5), "seed=1.5"),
        (dict(max_tokens=10**30), "max_tokens=1000"),
        (dict(presence_penalty="x"), "presence_penalty='x'"),
        (dict(n="2"), "n='2'"),
        (dict(n=10**9), "expected 1 to 128"),
        (dict(logprobs=-1), "logprobs=-1"),
        (dict(logit_bias={"a": 1}), "logit_bias="),
        (dict(logit_bias=[1]), "logit_bias="),
        (dict(token_mask=5), "token_mask=5"),
        (dict(top_k=2**40), "top_k="),
        (dict(allowed_token_ids=[10**12]), "allowed_token_ids="),
        (dict(stop_token_ids="12"), "stop_token_ids='12'"),
    ],
)
def test_wrong_types_name_the_field(engine, sampling, message):
    with pytest.raises((TypeError, ValueError), match=message):
        engine.generate(PROMPT, **sampling)


def test_none_is_the_default(engine, greedy):
    unset = dict(
        max_tokens=None, n=None, presence_penalty=None, stop=None, stop_token_ids=None, seed=None, logprobs=None
    )
    text = engine.generate(PROMPT, temperature=0, repetition_penalty=1, **{**unset, "stop": "."}).text
    assert text and greedy.text.startswith(text[:20])


def test_numpy_numbers_and_single_bad_words_are_fine(engine, greedy):
    numbers = dict(temperature=np.float32(0), top_k=np.int64(0), max_tokens=np.int32(5), seed=np.uint64(3))
    assert same(engine, **numbers).outputs[0].token_ids == greedy.outputs[0].token_ids[:5]
    word = greedy.text.split()[2]
    assert same(engine, bad_words=word).text == same(engine, bad_words=[word]).text != greedy.text


@pytest.mark.parametrize(
    "sampling,message",
    [
        (dict(n=0), "n=0"),
        (dict(min_p=2), "min_p=2"),
        (dict(presence_penalty=3), "presence_penalty=3"),
        (dict(frequency_penalty=-2.5), "frequency_penalty=-2.5"),
        (dict(min_tokens=-1), "min_tokens=-1"),
        (dict(min_tokens=50, max_tokens=5), "min_tokens=50"),
        (dict(logprobs=-3), "logprobs=-3"),
        (dict(stop=[""]), "stop="),
        (dict(logit_bias={5000: 1}), "logit_bias=5000"),
        (dict(allowed_token_ids=[]), "allowed_token_ids"),
        (dict(allowed_token_ids=[-4]), "allowed_token_ids=-4"),
        (dict(max_tokens=0), "max_tokens=0"),
    ],
)
def test_bad_parameters(engine, sampling, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(PROMPT, **sampling)
    assert engine.info()["num_free_blocks"] == engine.info()["num_kv_blocks"]
