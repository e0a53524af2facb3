"""The documents about serving: their examples run, their tables name every flag, their launch lines are understood."""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from longcat.cli import Parser, main
from longcat.cli.commands import serve
from longcat.server import run, texts
from longcat.server.api import protocol, service_routes
from longcat.server.api.playground import routes as playground
from longcat.server.http import http_protocol, json_text
from longcat.server.settings import ServerSettings

DOCS = Path(__file__).parents[2] / "docs"
SERVING = (DOCS / "serving.md").read_text()
ENGINE = (DOCS / "reference" / "engine.md").read_text()
MIGRATING = (DOCS / "migrating.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


CURLS = [block for block in blocks(SERVING, "sh") if block.startswith("curl")]
PROGRAMS = blocks(SERVING, "python")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("index", range(len(CURLS)))
def test_curl_examples(server, index):
    command = CURLS[index].replace(ADDRESS, server.url)
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    if "stream" in command:
        assert done.stdout.endswith("data: [DONE]\n\n") and '"usage"' in done.stdout
    else:
        [choice] = json.loads(done.stdout)["choices"]
        assert choice["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_openai_examples(server, index):
    program = PROGRAMS[index].replace(ADDRESS, server.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_there_are_examples():
    assert len(CURLS) >= 3 and len(PROGRAMS) >= 3


def flags() -> dict[str, argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    serve.add_arguments(parser)
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return {flag: action for action in shown for flag in action.option_strings}


def test_every_flag_is_described_and_no_other():
    described = set(re.findall(r"`(--[a-z-]+)`", SERVING[SERVING.index("## Flags") :] + ENGINE))
    assert described == set(flags())


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    section = SERVING[SERVING.index(heading) :].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_default_is_the_one_described():
    known = flags()
    for names, said, _ in rows("## Flags"):
        defaults = {known[flag].dest: known[flag].default for flag in re.findall(r"`(--[a-z-]+)`", names)}
        values = list(
            dict.fromkeys(
                str(value) for value in defaults.values() if value not in (None, False, []) and value is not True
            )
        )
        assert re.sub(": .*", "", said) == ", ".join(values) if values else not re.search(r"\d", said), names
    for _, said, flag, _ in rows("## Limits"):
        if flag:
            number, unit = re.match(r"([\d,]+) ?(\w*)", said).groups()
            size = {"MiB": 1 << 20, "KiB": 1 << 10}.get(unit, 1)
            assert known[flag.strip("`")].default == int(number.replace(",", "")) * size, flag


def test_every_limit_is_described():
    defaults = ServerSettings(("x",))
    for value, text in [
        (defaults.max_body_bytes, "32 MiB"), (defaults.max_header_bytes, "16 KiB"), (defaults.max_prompts, "1,024"),
        (defaults.max_completions, "2,048"),
        (defaults.max_stop_strings, "16"), (defaults.max_logprobs, "20"), (defaults.grammar_timeout, "2 s"),
        (defaults.send_timeout, "30 s"), (defaults.shutdown_timeout, "30 s"), (defaults.body_timeout, "60 s"),
        (defaults.body_rate, "64 KiB"), (defaults.max_waiting_bytes, "128 MiB"), (defaults.header_timeout, "30 s"),
        (defaults.max_connections, "16384"), (json_text.MAX_VALUES, "524,288"), (json_text.MAX_FIELDS, "65,536"),
        (json_text.MAX_DEPTH, "128"), (json_text.MAX_TEXT_BYTES, "4 MiB"), (texts._MAX_CHAT_CHARS, "2,097,152"),
        (service_routes.MAX_TOKENIZE_CHARS, "1,048,576"), (service_routes.MAX_DETOKENIZE_IDS, "131,072"),
        (protocol.MAX_ALLOWED_IDS, "4,096"), (protocol.MAX_BIASES, "1,024"), (protocol.MAX_STOP_IDS, "1,024"),
        (protocol.MAX_BAD_WORDS, "128"), (protocol.MAX_BAD_WORD_CHARS, "64"), (protocol.MAX_STOP_CHARS, "1,024"),
        (protocol.MAX_CHOICES, "65,536"), (defaults.max_header_bytes + http_protocol._SLICE, "24 KiB"),
        (run._KEEP_ALIVE_SECONDS, "75 s"), (playground.MAX_RENDER_CHARS, "65,536"),
        (playground.RENDER_LIMITS.cpu_seconds, "2 s"), (playground.RENDER_LIMITS.memory_bytes, "64 MiB"),
    ]:  # fmt: skip
        number, _, unit = text.replace(",", "").partition(" ")
        assert value == int(number) * {"MiB": 1 << 20, "KiB": 1 << 10}.get(unit, 1)
        assert re.search(rf"\| [^|]*\b{text}\b[^|]* \|", SERVING), text


def test_launch_lines_are_understood(tiny, capsys):
    """Of the model card and of this project, on a folder that is there, with as many processes as this version has."""
    card, ours = [block for block in blocks(MIGRATING, "sh") if "--max-running-requests" in block]
    arguments = shlex.split(card.replace("\\\n", " "))[3:]  # python3 -m sglang.launch_server
    assert main(["serve", *arguments]) == 2
    assert "need 8 ranks, and this process was started alone: mpirun -n 8" in capsys.readouterr().err.splitlines()[-1]
    parser = Parser()
    serve.add_arguments(parser)
    theirs = parser.parse_args(arguments)
    mine = parser.parse_args(shlex.split(ours.replace("\\\n", " "))[2:])
    for name in ("host", "port", "max_num_seqs"):
        assert getattr(theirs, name) == getattr(mine, name)
    assert theirs.gpu_memory_utilization == 0.9
    assert {"--trust-remote-code", "--disable-cuda-graph"} <= set(theirs.ignored)


def test_every_flag_of_the_other_engines_is_known():
    """Each flag in a column of another engine is a flag here, too: a counterpart, ignored or refused by name."""
    parser = Parser()
    serve.add_arguments(parser)
    section = MIGRATING[MIGRATING.index("## Flags") :].split("\n## ")[0]
    known = {*parser._option_string_actions, "-tp", "-dp", "-pp"}
    lines = [line for line in section.splitlines() if line.startswith("| ") and "`" in line][1:]
    assert len(lines) > 25
    for line in lines:
        flags = re.findall(r"`(--?[a-z-]+)`", line)
        assert set(flags) <= known, line


def test_the_cards_tool_example_runs(tiny):
    [program] = blocks(MIGRATING, "python")
    program = program.replace('"LongCat-Flash-Lite"', repr(tiny)).replace("256", "64")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "'role': 'assistant'" in done.stdout, done.stderr


def test_the_folder_is_given_once(tiny, capsys):
    for arguments in ([], [tiny, "--model", tiny]):
        assert main(["serve", *arguments]) == 2
        assert "FOLDER" in capsys.readouterr().err
