"""The command line and what importing costs."""

import importlib.metadata
import subprocess
import sys

import pytest
from longcat.cli import main
from longcat.support.names import install_command


def run(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "longcat", *arguments], capture_output=True, text=True, timeout=120, **kwargs
    )


def test_generate_streams_the_prompt_and_its_continuation(tiny):
    result = run("generate", tiny, "Once upon a time", "--max-tokens", "8", "--temperature", "0")
    assert result.returncode == 0
    assert result.stdout.startswith("Once upon a time") and len(result.stdout.split()) > 6
    assert "tok/s" in result.stderr and "8 tokens" in result.stderr
    again = run("generate", tiny, "-", "--max-tokens", "8", "--temperature", "0", input="Once upon a time")
    assert again.stdout == result.stdout


def test_errors_are_one_line(tmp_path, tiny, capsys):
    for arguments, code, message in [
        (["generate", str(tmp_path / "nowhere"), "x"], 1, "nowhere"),
        (["generate", str(tmp_path), "x"], 1, "config.json"),
        (["generate", tiny, "x", "--temperature", "-3"], 2, "--temperature -3; expected a number, 0 or more"),
        (["generate", tiny, ""], 2, "no tokens"),
    ]:
        assert main(arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("longcat: ") and error.count("\n") == 1 and message in error, error


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("longcat 0.")
    assert main([]) == 2
    assert "generate" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit:
        main(["generate", "--help"])
    assert exit.value.code == 0 and "--json-schema" in capsys.readouterr().out


HEAVY = ("torch", "numpy", "tokenizers", "tqdm", "jinja2", "prompt_toolkit", "huggingface_hub", "asyncio", "ssl")


def modules_after(code: str) -> list[str]:
    program = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()


HELP = """
from longcat.cli import main
try:
    main(["{}--help"])
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "code, most",
    [
        ("import longcat", 150),
        (HELP.format(""), 165),
        ("from longcat.cli import make_parser; make_parser(['serve'])", 165),
    ],
)
def test_starting_imports_little(code, most):
    """The time of a start is that of its imports, which tests can count where they cannot time."""
    modules = modules_after(code)
    assert [name for name in HEAVY if name in modules] == []
    assert len(modules) <= most, len(modules)


@pytest.mark.parametrize("command", ["top", "pull", "completion", "plan", "chat"])
def test_arguments_of_a_command_import_little(command):
    modules = modules_after(f"from longcat.cli import make_parser; make_parser(['{command}'])")
    assert [name for name in HEAVY if name in modules] == []


def test_nothing_of_torch_after_generating(tiny):
    code = f"import sys, longcat; longcat.Engine({tiny!r}).generate('a', max_tokens=2); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_install_hints_name_this_distribution():
    [distribution] = importlib.metadata.packages_distributions()["longcat"]
    assert install_command("server") == f"pip install '{distribution}[server]'"
    assert "server" in importlib.metadata.metadata(distribution).get_all("Provides-Extra")
