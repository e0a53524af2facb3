"""EngineConfig: one place for each option, from which keywords, checks and flags are derived."""

import dataclasses
import inspect
import shlex

import longcat
import pytest
from longcat import EngineConfig
from longcat.cli.engine_options import add_engine_arguments, engine_keywords
from longcat.cli.parser import Parser
from longcat.engine.config import options

FOLDER = "nowhere-at-all"
# A value of each option that is not its default.
GIVEN = {
    "device": "cuda:3",
    "tensor_parallel_size": 2,
    "expert_parallel_size": 2,
    "data_parallel_size": 2,
    "dtype": "f32",
    "quantization": "fp8",
    "max_model_len": 64,
    "kv_cache_dtype": "int8",
    "index_cache_dtype": "int8",
    "kv_cache_memory": "1GiB",
    "gpu_memory_utilization": 0.5,
    "ngram_placement": "disk",
    "speculative": {"method": "ngram"},
    "swap_memory": 0,
    "enable_prefix_caching": False,
    "max_num_seqs": 3,
    "max_num_queued": 5,
    "max_num_batched_tokens": 7,
    "async_scheduling": False,
    "seed": 9,
    "num_threads": 1,
    "tokenizer": "tokenizer.json",
    "chat_template": "{{ messages }}",
    "mask_timeout": 1.5,
    "progress": print,
}


def test_every_option_is_tried_here():
    assert set(GIVEN) | {"model"} == set(options()) == {field.name for field in dataclasses.fields(EngineConfig)}
    for name, value in GIVEN.items():
        assert value != getattr(EngineConfig, name), name


@pytest.mark.parametrize("name", GIVEN)
def test_an_option_by_all_its_names(name):
    for keyword in (name, *options()[name].aliases):
        config = EngineConfig.of(FOLDER, {keyword: GIVEN[name]})
        assert config == EngineConfig(FOLDER, **{name: GIVEN[name]}) != EngineConfig(FOLDER)
        assert EngineConfig.of(EngineConfig(FOLDER), {keyword: GIVEN[name]}) == config


def test_names_are_of_one_option_each():
    names = [alias for name, option in options().items() for alias in (name, *option.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", [name for name, option in options().items() if option.core])
def test_the_core_gets_an_option(name):
    core = options()[name].core
    if core == "speculation":  # the core does not tell it
        return
    plain, given = (getattr(EngineConfig(FOLDER, **some).core_options(), core) for some in ({}, {name: GIVEN[name]}))
    assert plain != given


@pytest.mark.parametrize("name", [name for name, option in options().items() if option.metavar])
def test_the_commands_that_have_a_flag(name):
    option, value = options()[name], GIVEN[name]
    for command in ("generate", "chat", "bench", "serve"):
        parser = Parser(prog=f"longcat {command}")
        add_engine_arguments(parser, command)
        assert EngineConfig(FOLDER, **engine_keywords(parser.parse_args([FOLDER]))) == EngineConfig(FOLDER)
        if option.commands and command not in option.commands:
            assert name not in engine_keywords(parser.parse_args([FOLDER]))
            continue
        for keyword in (name, *option.aliases):
            flag = "--" + keyword.replace("_", "-")
            text = shlex.quote(str(value).replace("'", '"'))
            line = f"{flag} {text}" if value is not False else f"--no-{flag[2:]}"
            keywords = engine_keywords(parser.parse_args([FOLDER, *shlex.split(line)]))
            assert EngineConfig(FOLDER, **keywords) == EngineConfig(FOLDER, **{name: value}), line


@pytest.mark.parametrize(
    "given, error, said",
    [
        ({"max_len": 3}, TypeError, 'Engine has no parameter "max_len": did you mean "max_model_len"?'),
        ({"max_runing_requests": 3}, TypeError, 'did you mean "max_running_requests"?'),
        ({"nothing_alike_at_all": 3}, TypeError, ", chat_template, context_length, "),
        ({"tp": 2, "tp_size": 2}, TypeError, "Engine has tensor_parallel_size twice, once as tp_size: give it once"),
        ({"model_path": "b"}, TypeError, "Engine has model twice, once as model_path"),
        ({"max_num_seqs": 0}, ValueError, "max_num_seqs=0; expected"),
        ({"mask_timeout": 0}, ValueError, "mask_timeout=0; expected seconds"),
        ({"quantization": "awq"}, ValueError, "quantization='awq' is not known"),
        ({"dtype": "f16"}, ValueError, "expected auto, f32 or bf16"),
        ({"device": 3}, TypeError, "device=3 is a int"),
        ({"seed": "x"}, TypeError, "seed='x' is a str: expected an integer"),
        ({"swap_memory": -2}, ValueError, "swap_memory=-2; expected"),
        ({"mask_timeout": "1 s"}, ValueError, "mask_timeout='1 s'; expected seconds"),
        ({"enable_prefix_caching": "false"}, TypeError, "enable_prefix_caching='false' is a str: expected True or"),
        ({"speculative": {"method": ["mtp"]}}, ValueError, "speculative method ['mtp'] is not known"),
        ({"speculative": {"method": "mtp", 3: 4}}, TypeError, 'speculative has no parameter "3"'),
        ({"speculative": {"method": "mtp", "adaptive": "no"}}, TypeError, "adaptive='no' is a str: expected True or"),
        ({"progress": 3}, TypeError, "progress=3 is a int: expected a function"),
        ({"data_parallel_size": 0}, ValueError, "data_parallel_size=0; expected"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_loaded(given, error, said):
    with pytest.raises(error) as raised:
        longcat.Engine(FOLDER, **given)
    assert said in str(raised.value)


def test_no_folder():
    for make in (longcat.Engine, EngineConfig, longcat.LLM):
        with pytest.raises(TypeError, match="Engine needs the path of a checkpoint folder"):
            make()


def test_a_config_is_frozen_and_is_what_the_engine_had(tiny):
    config = EngineConfig(tiny, max_num_seqs=3)
    with longcat.Engine(config, num_threads=1) as engine:
        assert engine.config == dataclasses.replace(config, num_threads=1)
        assert engine.generate("Once", max_tokens=2, ignore_eos=True).outputs[0].finish_reason == "length"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_num_seqs = 4


def test_swap_memory_far_beyond_use_costs_nothing(tiny):
    """A list of its blocks would take all memory of the machine."""
    with longcat.Engine(tiny, num_threads=1, swap_memory=1 << 62) as engine:
        assert engine.generate("Once", max_tokens=2, ignore_eos=True).outputs[0].finish_reason == "length"


def test_a_step_is_planned_ahead_or_not(tiny):
    texts = set()
    for async_scheduling in (True, False):
        with longcat.Engine(tiny, async_scheduling=async_scheduling) as engine:
            texts.add(engine.generate("Once upon a time", max_tokens=8, temperature=0).text)
    assert len(texts) == 1


def test_the_signature_lists_the_options():
    assert list(inspect.signature(longcat.Engine).parameters) == list(options())
