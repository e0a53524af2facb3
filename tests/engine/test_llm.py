"""longcat.LLM, and what else programs written for other engines bring."""

import longcat
import pytest
from longcat import LLM, Engine
from longcat.engine import streams


@pytest.fixture(scope="module")
def llm(tiny):
    with LLM(tiny, gpu_memory_utilization=0.9, num_threads=1) as llm:
        yield llm


def test_answers_are_lists(llm):
    options = {"max_tokens": 8, "temperature": 0}
    [alone] = llm.generate("Once upon a time", **options)
    both = llm.generate(["Once upon a time", "One day"], longcat.SamplingParams(**options), use_tqdm=False)
    assert [output.outputs[0].text for output in both][:1] == [alone.outputs[0].text] != [""]
    [ids] = llm.generate(prompt_token_ids=alone.prompt_token_ids, **options)
    assert ids.outputs[0].token_ids == alone.outputs[0].token_ids
    [reply] = llm.chat([{"role": "user", "content": "Hello"}], **options)
    assert reply.message["role"] == "assistant"


def test_a_stream_is_a_stream(llm):
    chunks = list(llm.generate("Once", stream=True, max_tokens=5, temperature=0))
    assert (
        "".join(chunk.delta for chunk in chunks) == llm.generate("Once", max_tokens=5, temperature=0)[0].outputs[0].text
    )


def test_a_bar_in_a_terminal_counts_prompts(llm, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, total, **options):
            shown.append(total)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self):
            shown.append("+")

    monkeypatch.setattr("tqdm.tqdm", Bar)
    llm.generate(["a", "b"], max_tokens=2)
    assert shown == []  # no terminal
    monkeypatch.setattr(streams.sys, "stderr", type("Terminal", (), {"isatty": lambda self: True})())
    llm.generate(["a", "b", "c"], max_tokens=2, n=2)
    assert shown == [3, "+", "+", "+"]
    llm.generate(["a", "b"], max_tokens=2, use_tqdm=False)
    llm.generate("a", max_tokens=2)
    assert len(shown) == 4


@pytest.mark.parametrize("value", [0, 1.5, -0.1, True, "0.9"])
def test_a_share_of_memory_is_a_share(tiny, value):
    with pytest.raises(ValueError, match="gpu_memory_utilization=.* is not possible: expected a share above 0"):
        Engine(tiny, mem_fraction_static=value)
