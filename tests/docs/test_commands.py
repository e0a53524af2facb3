"""The commands and programs of the README and the guides run as they stand; CONTRIBUTING's as far as they are quick."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from support.documents import CONTRIBUTING, PAGES, README, README_ZH, ROOT, each_page

GUIDES = [README, *(page for page in PAGES if page.path.name in ("python.md", "commands.md"))]
NEEDS = (
    "hf ",
    "make ",
    "pip ",
    "longcat pull ",
    "longcat plan meituan-longcat/",
    "longcat convert meituan-longcat/",
)  # the network, a build, the real model
SERVES = ("longcat serve", "longcat chat", "longcat top", "curl ")  # tests of the server and of the terminal run these
SLOW = ("longcat bench", "longcat convert examples/longcat-tiny build/tiny-calibrated")  # many seconds of a core

COMMANDS = [
    line
    for page in GUIDES
    for block in page.blocks("sh")
    for line in block.splitlines()
    if line.startswith(("longcat ", "echo ")) and not line.startswith((*NEEDS, *SERVES, *SLOW))
]
PROGRAMS = [block for page in GUIDES for block in page.blocks("python")]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the files of a checkout that commands read, and room for what they write; `longcat` in bin/."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "build").mkdir()
    (folder / "bin").mkdir()
    program = folder / "bin" / "longcat"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m longcat "$@"\n')
    program.chmod(0o755)
    return folder


def run(folder, arguments, **options) -> str:
    environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(checkout, command):
    assert run(checkout, ["sh", "-ec", command]).strip()


@pytest.mark.parametrize("index", range(len(PROGRAMS)))
def test_programs(checkout, index):
    assert run(checkout, [sys.executable, "-c", PROGRAMS[index]]).strip()


def test_there_are_commands():
    assert len(COMMANDS) >= 10 and len(PROGRAMS) == 3


def test_curl_of_the_readme(server):
    [command] = [block for block in README.blocks("sh") if block.startswith("curl")]
    command = command.replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=60)
    assert "Freya" in done.stdout, done.stderr


def make_lines() -> list[str]:
    rows = " ".join(re.findall(r"^\| (`.*?`) \|", CONTRIBUTING.text, re.MULTILINE))
    return [line for line in re.findall(r"`([^`]+)`", rows) if line.startswith("make ")]


@pytest.mark.parametrize("line", make_lines())
def test_targets_of_contributing(line, tmp_path):
    """Each is known to make, with all that it depends on."""
    command = [*shlex.split(line), "--dry-run", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_public_target_is_in_contributing():
    [phony] = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    targets = {line.split()[1] for line in make_lines()}
    assert set(phony.split()) - {"third_party"} == targets


def test_pytest_line_of_contributing():
    """The line of the editable install, on the tests of one file, which it collects."""
    [line] = [line for block in CONTRIBUTING.blocks("sh") for line in block.splitlines() if "bin/pytest" in line]
    arguments = shlex.split(line)[1:]
    command = [sys.executable, "-m", "pytest", *arguments, "--collect-only", "-q", "tests/test_floors.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "test_floors" in done.stdout, done.stdout + done.stderr


def test_editable_install_of_contributing():
    """It names an extra and an option that exist, and installs the build's requirements, as it forgoes isolation."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [line for block in CONTRIBUTING.blocks("sh") for line in block.splitlines() if "pip install" in line]
    needs = {re.split(r"[<>=]", name)[0] for name in project["build-system"]["requires"]}
    assert needs <= set(lines[0].split())
    [extra] = re.findall(r"\.\[(\w+)\]", lines[1])
    assert extra in project["project"]["optional-dependencies"]
    [option] = re.findall(r"cmake\.define\.(\w+)", lines[1])
    assert option in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def figures(text: str) -> set[str]:
    return set(re.findall(r"\d(?:[\d,]*\d)?(?:\.\d+)*", re.sub(r"\]\([^)]*\)", "]", text)))


def test_the_readmes_agree():
    """Headings, code and figures of both languages are the same."""
    assert len(README.headings()) == len(README_ZH.headings())
    assert README.blocks() == README_ZH.blocks()
    assert sorted(README.links()[1:]) == sorted(README_ZH.links()[1:])  # the first one is the other language
    assert figures(README.text) == figures(README_ZH.text)
    assert len(README.tables()) == len(README_ZH.tables())


def test_speeds_of_the_readme_are_measured():
    """Each figure of the table stands on the page of its machine, or else in bench/README.md."""
    table = README.text[README.text.index("| machine") :].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        cells = row.split("|")
        page = re.search(r"\]\((.*?)\)", cells[1])
        measured = (ROOT / (page[1] if page else "bench/README.md")).read_text(encoding="utf-8")
        assert figures(cells[-2]) <= figures(measured), row
        assert re.search(r"\d{4}-\d\d-\d\d", cells[1]), row


def test_the_struct_table_is_lite():
    """The column of docs/architecture.md is the configuration of LongCat-Flash-Lite."""
    from longcat.checkpoint.random_weights import LITE_CONFIG

    [page] = [page for page in PAGES if page.path.name == "architecture.md"]
    seen = 0
    for row in page.tables():
        names, values = re.findall(r"`(\w+)`", row.split("|")[1]), re.findall(r"\d+", row.split("|")[-2])
        if names and all(name in LITE_CONFIG for name in names):
            assert [str(LITE_CONFIG[name]) for name in names] == values, row
            seen += len(names)
    assert seen >= 15


@each_page
def test_pages_are_not_empty(page):
    assert page.headings()
