"""longcat.LLM, and what else programs written for other engines bring."""

import re

import longcat
import pytest
from longcat import LLM, Engine
from longcat.engine import streams


@pytest.fixture(scope="module")
def llm(tiny):
    with LLM(tiny, gpu_memory_utilization=0.9, num_threads=1) as llm:
        yield llm


def test_completions_are_lists(llm):
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
    with pytest.raises(ValueError, match="gpu_memory_utilization=.*; expected a share above 0"):
        Engine(tiny, mem_fraction_static=value)


VLLM = dict(
    tokenizer_mode="auto",
    skip_tokenizer_init=False,
    trust_remote_code=True,
    allowed_local_media_path="",
    tensor_parallel_size=1,
    dtype="bfloat16",
    revision=None,
    tokenizer_revision=None,
    seed=0,
    swap_space=4,
    cpu_offload_gb=0,
    enforce_eager=True,
    max_seq_len_to_capture=8192,
    disable_custom_all_reduce=False,
    hf_token=None,
    hf_overrides=None,
    pooler_config=None,
    compilation_config=None,
    logits_processors=None,
    max_model_len=64,
    max_num_seqs=2,
    load_format="auto",
    block_size=16,
    distributed_executor_backend="mp",
    pipeline_parallel_size=1,
    enable_lora=False,
    disable_log_stats=True,
    enable_expert_parallel=False,
    kv_cache_dtype="auto",
    task="generate",
    enable_prefix_caching=True,
    quantization=None,
    generation_config="auto",
    served_model_name="x",
)


def test_keywords_of_vllm_are_taken_with_one_warning(tiny):
    with pytest.warns(UserWarning) as warned, LLM(model=tiny, **VLLM) as llm:
        assert llm.info()["max_model_len"] == 64
    [warning] = [str(w.message) for w in warned]
    assert warning.startswith("LLM ignores ") and "trust_remote_code" in warning and "enforce_eager" in warning
    assert "max_model_len" not in warning and "seed" not in warning and warned[0].filename == __file__


@pytest.mark.parametrize(
    "keyword, value, said",
    [
        ("pipeline_parallel_size", 2, "pipeline_parallel_size 2; expected 1. Share layers"),
        ("enable_lora", True, "enable_lora is not supported. Merge the adapter"),
        ("generation_config", "vllm", "generation_config vllm; expected auto. Send"),
        ("logits_processors", [len], "token_mask"),
        ("cpu_offload_gb", 10, "--ngram-placement"),
        ("task", "embed", "generates text"),
        ("load_format", "dummy", "make-checkpoint"),
        ("dtype", "float16", 'dtype="float16"; expected auto, f32 or bf16'),
        ("quantization", "awq", "awq"),
    ],
)
def test_what_llm_does_not_do_is_refused_by_name(tiny, keyword, value, said):
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        LLM(tiny, **{keyword: value})
    assert "\n" not in str(error.value)


def test_a_misspelt_keyword_gets_the_nearest(tiny):
    with pytest.raises(TypeError, match='"max_model_length": did you mean "max_model_len"'):
        LLM(tiny, max_model_length=64)


def test_calls_of_vllm(llm):
    options = longcat.SamplingParams(max_tokens=4, temperature=0)
    [expected] = llm.generate("Once", options)
    assert llm.generate(["Once"], options, lora_request=None, use_tqdm=False)[0].text == expected.text
    [reply] = llm.chat([{"role": "user", "content": "Hello"}], options, False, chat_template=None)
    assert reply.message["content"]
    with pytest.raises(ValueError, match="lora_request='x' is not supported"):
        llm.generate("Once", options, lora_request="x")
    tokenizer = llm.get_tokenizer()
    assert tokenizer.decode(tokenizer.encode("Once upon")) == "Once upon"
    assert llm.get_default_sampling_params() == longcat.SamplingParams()
