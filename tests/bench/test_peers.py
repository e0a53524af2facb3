"""`longcat bench peers`, with a script in place of llama-bench."""

import json
import re

import pytest
from longcat.bench.peers import Rates, summary
from longcat.cli import main

# Its rates are those of the call's number: 100 and 10 tokens/s in the first call, 200 and 20 in the second.
FAKE = """#!/bin/sh
echo "$@" >> "{calls}"
n=$(wc -l < "{calls}")
cat <<END
[{{"build_commit": "abc1234", "model_type": "longcat 8M Q4_0", "model_size": 5000000, "n_prompt": 12, "n_gen": 0,
   "avg_ts": $((100 * n)).0}},
 {{"build_commit": "abc1234", "model_type": "longcat 8M Q4_0", "model_size": 5000000, "n_prompt": 0, "n_gen": 6,
   "avg_ts": $((10 * n)).0}}]
END
"""


@pytest.fixture
def peer(tmp_path):
    """Writes a script as llama-bench and a model; returns the arguments that name them."""

    def write(script, model=b"GGUF\x03\x00\x00\x00"):
        path = tmp_path / "llama-bench"
        path.write_text(script.format(calls=tmp_path / "calls"))
        path.chmod(0o755)
        (tmp_path / "model.gguf").write_bytes(model)
        return ["--llama-bench", str(path), "--gguf", str(tmp_path / "model.gguf")]

    return write


def command(tiny, arguments):
    return ["bench", "peers", tiny, *arguments, "--input-len", "12", "--output-len", "6", "--num-threads", "1"]


def test_both_run_in_turn_with_the_same_lengths(tiny, peer, tmp_path, capsys):
    assert main([*command(tiny, peer(FAKE)), "--rounds", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3
    for words in map(str.split, calls):
        given = dict(zip(words[::2], words[1::2], strict=True))
        assert given["-p"] == "12" and given["-n"] == "6" and given["-t"] == "1" and given["-r"] == "1"
        assert given["-m"] == str(tmp_path / "model.gguf") and given["-o"] == "json"
    prompt, generate = result["tests"]
    assert (prompt["test"], prompt["llama.cpp"], prompt["llama.cpp_range"]) == ("pp12", 200, [100, 300])
    assert (generate["test"], generate["llama.cpp"], generate["llama.cpp_range"]) == ("tg6", 20, [10, 30])
    for test in (prompt, generate):
        least, most = test["longcat_range"]
        assert 0 < least <= test["longcat"] <= most
        assert test["ratio"] == pytest.approx(test["longcat"] / test["llama.cpp"])
    assert result["num_threads"] == 1 and "abc1234" in result["peer"] and "5000000" in result["peer"]


def test_table(tiny, peer, capsys):
    assert main([*command(tiny, peer(FAKE)), "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1 thread; llama.cpp abc1234" in lines[0]
    assert re.fullmatch(r"\| pp12 \| [\d.e+]+ \(.+ to .+\) \| 100 \(100 to 100\) \| [\d.]+ \|", lines[-2])
    assert re.fullmatch(r"\| tg6 \| [\d.e+]+ \(.+ to .+\) \| 10 \(10 to 10\) \| [\d.]+ \|", lines[-1])


def test_ratio_is_of_the_medians():
    [prompt, _] = summary(Rates([90, 30, 60], [1, 1, 1]), Rates([20, 40, 30], [2, 2, 2]), 12, 6)
    assert (prompt["longcat"], prompt["llama.cpp"], prompt["ratio"]) == (60, 30, 2)


@pytest.mark.parametrize(
    ("script", "model", "error"),
    [
        ("#!/bin/sh\nexit 0\n", b"PK\x03\x04", "begins with b'PK\\x03\\x04'; expected a GGUF file"),
        ("#!/bin/sh\necho 'error: unknown model architecture' >&2\nexit 1\n", b"GGUF", "1: error: unknown model arch"),
        ("#!/bin/sh\nexit 3\n", b"GGUF", "exit status 3: it printed no error"),
        ("#!/bin/sh\nkill -9 $$\n", b"GGUF", "signal 9: "),
        ("#!/bin/sh\necho '| model | size |'\n", b"GGUF", "expected llama-bench's JSON of the tests pp12 and tg6"),
        ("#!/bin/sh\necho '[]'\n", b"GGUF", "expected llama-bench's JSON of the tests pp12 and tg6"),
        ("not a program", b"GGUF", "does not start"),
    ],
)
def test_what_fails(tiny, peer, capsys, script, model, error):
    assert main([*command(tiny, peer(script, model)), "--rounds", "1"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("longcat: [bench] ") and error in line


def test_missing_files(tiny, peer, tmp_path, capsys):
    program, model = (peer("#!/bin/sh\n")[i] for i in (1, 3))
    missing = str(tmp_path / "missing")
    for arguments, error in (
        (["--llama-bench", missing, "--gguf", model], f"--llama-bench {missing} is no file; expected the program"),
        (["--llama-bench", program, "--gguf", missing], f"--gguf {missing} cannot be read: No such file"),
        (["--llama-bench", model, "--gguf", model], f"--llama-bench {model} is not executable"),
    ):
        assert main(command(tiny, arguments)) == 1
        assert error in capsys.readouterr().err
