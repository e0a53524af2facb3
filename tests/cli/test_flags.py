"""Flags: exact names, ranges, suggestions, and launch lines of other engines. Each error is one line."""

import importlib
import os
import shlex

import pytest
from longcat.cli import COMMANDS, Parser, main
from longcat.cli.commands import serve
from longcat.support.other_engines import OTHER_OPTIONS

FOLDER = "nowhere-at-all"


def error_of(capsys, *arguments: str) -> str:
    """The one line that the command ends with, before it looks for its folder."""
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("longcat: ") and error.count("\n") == 1 and FOLDER not in error, error
    return error


def parsed(line: str):
    parser = Parser(prog="longcat serve")
    serve.add_arguments(parser)
    return parser.parse_args(shlex.split(line))


@pytest.mark.parametrize(
    "line, said",
    [
        ("srve", 'unknown command "srve"; did you mean "serve"?'),
        ("run", 'unknown command "run"; expected generate, chat, serve'),
        ("--verson", "unknown flag --verson; did you mean --version?"),
        ("bench latncy", 'unknown benchmark "latncy"; expected latency, throughput, serve, startup'),
        ("serve F --prot 1", "[serve] unknown flag --prot; did you mean --port?"),
        ("serve F --gpu-mem 1", "did you mean --gpu-memory-utilization?"),
        ("serve F --nothing-alike 1", 'unknown flag --nothing-alike; "longcat serve --help"'),
        ("generate F x --temprature 1", "[generate] unknown flag --temprature; did you mean --temperature?"),
        ("generate F x y", '"y" is one argument too many'),
        ("generate", "missing: FOLDER"),
        ("convert F G --quant int5", "--quant int5; expected "),
        ("serve F --max-num-seqs", "--max-num-seqs has no value; expected one"),
        ("plan F --json=1", "--json takes no value; found 1"),
        ("verify F --headers --write-hashes", "--write-hashes and --headers exclude each other; expected one of them"),
        (
            "bench throughput F --num-promts 3",
            "[bench throughput] unknown flag --num-promts; did you mean --num-prompts?",
        ),
    ],
)
def test_typos_get_one_line_and_the_nearest_name(capsys, line, said):
    assert said in error_of(capsys, *line.replace(" F", " " + FOLDER).split())


@pytest.mark.parametrize(
    "command, flag",
    [
        ("serve", "--tokenizer-mod"),
        ("serve", "--max-model"),
        ("serve", "--served"),
        ("serve", "--por"),
        ("generate", "--max-tok"),
        ("chat", "--sys"),
        ("plan", "--band"),
        ("verify", "--head"),
        ("convert", "--cal"),
        ("make-checkpoint", "--pre"),
        ("doctor", "--js"),
    ],
)
def test_no_prefix_of_a_flag_is_taken_for_it(capsys, command, flag):
    error = error_of(capsys, command, FOLDER, flag, "1")
    assert f"unknown flag {flag}; did you mean {flag}" in error


@pytest.mark.parametrize(
    "command, flag, values, expected",
    [
        ("serve", "--port", ("70000", "-1", "65536", "http", "8e3"), "an integer from 0 to 65535"),
        ("serve", "--max-num-seqs", ("0", "-4", "many"), "an integer, 1 or more"),
        ("serve", "--max-queued-requests", ("0",), "an integer, 1 or more"),
        ("serve", "--max-body-size", ("-1", "32MiB"), "an integer, 1 or more"),
        ("serve", "--max-header-size", ("0",), "an integer, 1 or more"),
        ("serve", "--max-logprobs", ("-1",), "an integer, 0 or more"),
        ("serve", "--grammar-timeout", ("0", "nan", "inf", "soon"), "a number above 0"),
        ("serve", "--send-timeout", ("0", "-3"), "a number above 0"),
        ("serve", "--shutdown-timeout", ("-1", "nan"), "a number, 0 or more"),
        ("serve", "--gpu-memory-utilization", ("0", "90", "nan"), "a number above 0 and at most 1"),
        ("serve", "--tensor-parallel-size", ("0",), "an integer, 1 or more"),
        ("serve", "--max_model_len", ("0", "32k"), "an integer, 1 or more"),
        ("serve", "--log-level", ("loud",), "debug, info, warning, error, critical"),
        ("serve", "--speculative-config", ("{",), "JSON"),
        ("chat", "--num-threads", ("0",), "an integer, 1 or more"),
        ("chat", "--temperature", ("-1", "nan", "hot"), "a number, 0 or more"),
        ("chat", "--top-p", ("0", "1.5"), "a number above 0 and at most 1"),
        ("chat", "--min-p", ("-0.1", "2"), "a number from 0 to 1"),
        ("chat", "--max-tokens", ("0",), "an integer, 1 or more"),
        ("chat", "--repetition-penalty", ("0",), "a number above 0"),
        ("plan", "--max-running-requests", ("0",), "an integer, 1 or more"),
        ("plan", "--bandwidth", ("0", "fast"), "a number above 0"),
        ("plan", "--gpus", ("0", "65"), "an integer from 1 to 64"),
        ("generate", "-n", ("0", "129"), "an integer from 1 to 128"),
    ],
)
def test_numbers_are_refused_with_their_range(capsys, command, flag, values, expected):
    for value in values:
        error = error_of(capsys, command, FOLDER, f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}")
        assert f"{flag.replace('_', '-')} {value}; expected {expected}" in error


def test_launch_lines_of_other_engines_are_read():
    args = parsed(
        "F -tp 2 -dp=3 -ep 2 --max_num_seqs 8 --max-model-len=64 --dtype bfloat16 --kv-cache-dtype fp8_e4m3 --seed 7 "
        "--enable-prefix-caching --pipeline-parallel-size 1 --generation-config auto --trust-remote-code "
        "--enable-auto-tool-choice --tool-call-parser hermes --disable-log-requests --kv-cache-memory-bytes 4GiB"
    )
    assert (args.tensor_parallel_size, args.data_parallel_size, args.expert_parallel_size) == (2, 3, 2)
    assert (args.max_num_seqs, args.max_model_len, args.seed) == (8, 64, 7)
    assert (args.dtype, args.kv_cache_dtype, args.kv_cache_memory) == ("bf16", "fp8", "4GiB")
    assert args.enable_prefix_caching and args.ignored == [
        "--pipeline-parallel-size",
        "--generation-config",
        "--trust-remote-code",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "--disable-log-requests",
    ]
    assert parsed("F --dtype float32").dtype == "f32" and parsed("F").enable_prefix_caching
    assert not parsed("F --no-enable-prefix-caching").enable_prefix_caching
    assert not parsed("F --enable-prefix-caching --disable-radix-cache").enable_prefix_caching
    assert parsed("F --tokenizer other").tokenizer == "other"


@pytest.mark.parametrize(
    "line, said",
    [
        ("--dtype half", "--dtype half; expected auto, f32 or bf16. Nothing is kept in f16: use bf16"),
        ("-pp 2", "--pipeline-parallel-size 2; expected 1. Share layers by --tensor-parallel-size"),
        ("--pp-size 2", "--pp-size 2; expected 1"),
        ("--generation-config vllm", "expected auto. Send sampling fields with each request"),
        ("--enable-lora", "--enable-lora is not supported. Merge the adapter"),
        ("--lora-modules a=b c=d", "--lora-modules a=b is not supported"),
        ("--load-format dummy", "longcat make-checkpoint"),
        ("--tokenizer-mode mistral", "tokenizer.json"),
        ("--speculative-algorithm EAGLE", "--speculative-config"),
        ("--nnodes 2", "mpirun"),
        ("--quantization awq", "--quantization awq; expected fp8"),
        ("--max-total-tokens 9", "--kv-cache-memory"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_the_remedy(capsys, line, said):
    assert said in error_of(capsys, "serve", FOLDER, *line.split())


def test_every_option_of_other_engines_is_either_ignored_or_refused_with_a_remedy():
    for name, option in OTHER_OPTIONS.items():
        flag = f"--{name}"
        if option.neutral is None:
            option.check(flag, "anything")
            continue
        assert option.remedy.endswith(".")
        for value in option.neutral:
            option.check(flag, value)
        option.check(flag, False)
        with pytest.raises(ValueError, match=f"^{flag} .*; expected|^{flag}.* is not supported"):
            option.check(flag, "anything else")


def test_flags_with_several_values_do_not_swallow_the_folder(tiny):
    for line, names, keys in [
        (f"--served-model-name a b {tiny}", ["a", "b"], []),
        (f"--port 1 --served-model-name a {tiny} --seed 1", ["a"], []),
        (f"--api-key k {tiny} --served-model-name a", ["a"], ["k"]),
        (f"{tiny} --served-model-name a b", ["a", "b"], []),
        (f"--served-model-name a b --model {tiny}", ["a", "b"], []),
        (f"--served-model-name a b -- {tiny}", ["a", "b"], []),
    ]:
        args = parsed(line)
        assert serve._model_folder(args) == tiny and args.served_model_name == names and args.api_key == keys, line


@pytest.mark.parametrize("line", ["", "--served-model-name a b", "--served-model-name {tiny}", "{tiny} --model {tiny}"])
def test_the_folder_is_given_once(capsys, tiny, line):
    error = error_of(capsys, "serve", *line.format(tiny=tiny).split())
    assert "expected one: longcat serve FOLDER" in error


@pytest.mark.parametrize(
    "flag, value, said",
    [
        ("--chat-template", "/nope", "[chat template] /nope does not exist; expected a jinja file"),
        ("--chat-template", "/", "[chat template] / is no regular file; expected a jinja file"),
        ("--tokenizer", "/nope", "[tokenizer] /nope does not exist; expected a tokenizer.json"),
        ("--chat-template", "{% if %}", "[chat template]"),
    ],
)
def test_files_are_checked_before_listening(tiny, capsys, flag, value, said):
    assert main(["serve", tiny, "--port", "0", flag, value]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("longcat: ") and said in lines[-1] and not any("listening" in line for line in lines)


@pytest.mark.parametrize("command", ["generate", "plan", "verify", "doctor", "serve", "convert", "chat"])
def test_a_name_that_is_not_utf8_is_refused_in_one_line(capsys, command):
    assert "b'caf\\xe9' is not UTF-8; expected UTF-8. Rename" in error_of(capsys, command, os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_flag_and_reads_without_it(capsys, command):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    usage, *_ = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: longcat {command} [flags]")
    parser = Parser(prog=f"longcat {command}")
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    kinds = [kind for action in parser._actions for kind in (getattr(action, "_name_parser_map", None) or {}).values()]
    for each in [parser, *kinds]:
        for action in each._actions:
            assert action.help and not action.help.startswith(("(", "of ", "to ", "for ")), action.option_strings
