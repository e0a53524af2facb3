"""`longcat completion`: what each shell is offered. Bash runs the script here; zsh and fish where they are."""

import contextlib
import io
import shutil
import subprocess

import pytest
from longcat.cli import COMMANDS, main, make_parser
from longcat.cli.commands.completion import SHELLS

CASES = [
    ("ser", {"serve"}),
    ("serve --log-le", {"--log-level"}),
    ("serve --log-level d", {"debug"}),
    ("bench la", {"latency"}),
    ("bench latency --input", {"--input-len"}),
    ("pull --from ", {"hub", "modelscope"}),
    ("completion ", set(SHELLS)),
    ("convert --quant int", {"int4", "int8"}),
    ("serve --port ", set()),
]


@pytest.fixture(params=SHELLS)
def shell(request):
    return request.param


@pytest.fixture(scope="module")
def scripts():
    """What the command prints for each shell."""
    printed = {}
    for name in SHELLS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["completion", name]) == 0
        printed[name] = out.getvalue()
    return printed


def run(program: list[str], text: str = "") -> str:
    done = subprocess.run(program, input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_command_and_flag_is_offered(scripts, shell):
    text = scripts[shell]
    for path, leaf in make_parser().leaves():
        assert path[-1] in text
        for flag, action in leaf._option_string_actions.items():
            if action.help != "==SUPPRESS==":
                assert (f"-l {flag[2:]}" if shell == "fish" and flag.startswith("--") else flag) in text, flag
    assert "--trust-remote-code" not in text and set(COMMANDS) >= {"pull", "top", "completion"}


def test_scripts_are_whole(scripts, shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    file = tmp_path / "script"
    file.write_text(scripts[shell])
    run([shell, "-n", str(file)])


@pytest.mark.parametrize("line, offered", CASES)
def test_bash_offers(scripts, line, offered):
    words = ["longcat", *line.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f'\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _longcat; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
    assert set(run(["bash", "--norc"], scripts["bash"] + ask).split()) == offered


@pytest.mark.parametrize("line, offered", CASES[:-1])
def test_fish_offers(scripts, line, offered, tmp_path, monkeypatch):
    if shutil.which("fish") is None:
        pytest.skip("needs fish")
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    text = scripts["fish"] + f"\ncomplete -C 'longcat {line}'\n"
    found = {row.split("\t")[0] for row in run(["fish", "--no-config"], text).splitlines()}
    assert offered <= found and not any(name.startswith("make") for name in found - offered)


def test_an_unknown_shell_is_one_line(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert 'unknown shell "tcsh"; expected bash, zsh, fish' in capsys.readouterr().err
