"""What packages and deploys longcat fits the code: workflows, the toolchain of wheels, container and service."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from longcat.cli import Parser
from longcat.cli.commands.serve import add_arguments

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
COMPOSE = ROOT / "examples" / "container" / "compose.yaml"
SERVICE = ROOT / "examples" / "systemd" / "longcat.service"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_make_and_hold_no_secret(path):
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = re.findall(r"\brun: *(.*)$", text, re.MULTILINE)
    assert lines and "secrets." not in text
    for line in lines:
        program, *words = shlex.split(line)
        assert line == ".ci/run" or (program == "make" and set(words) <= targets), line


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_the_toolchain_parses(tmp_path, architecture):
    script = tmp_path / "script.cmake"
    values = ";".join(f"${{CMAKE_{name}}}" for name in ("CXX_COMPILER", "AR", "CXX_COMPILER_TARGET"))
    script.write_text(f'include("{ROOT}/packaging/zig/toolchain.cmake")\nmessage("{values}")\n')
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not cmake:
        pytest.skip("no cmake")
    environment = os.environ | {"LONGCAT_ARCH": architecture}
    done = subprocess.run([cmake, "-P", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    compiler, archiver, target = done.stderr.strip().split(";")
    assert target == f"{architecture}-linux-gnu.2.28"
    assert os.access(compiler, os.X_OK) and os.access(archiver, os.X_OK)


def test_the_compiler_takes_the_option_of_arm_kernels():
    """zig has a spelling of its own for what kernels.cmake asks of GCC and Clang."""
    option = re.search(r"-march=\S*dotprod", (ROOT / "cpp" / "cpu" / "kernels.cmake").read_text())[0]
    command = [ROOT / "packaging" / "zig" / "c++", "--target=aarch64-linux-gnu.2.28", option, "a b.cpp"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ZIG": "echo"}, check=True)
    assert done.stdout.strip() == "c++ --target=aarch64-linux-gnu.2.28 -mcpu=generic+v8_2a+dotprod a b.cpp"


@pytest.mark.parametrize("there", [True, False], ids=["a Python", "no Python"])
def test_a_wheel_of_another_architecture_runs_where_there_is_a_python(tmp_path, there):
    """Debian lacks some versions, and a Python at a known path takes their place."""
    shutil.copytree(ROOT / "packaging", tmp_path / "packaging")
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\ncase "$2" in pytest) echo "3 passed" ;; longcat) echo "longcat 1" ;; esac\n')
    program.chmod(0o755)
    find_python = tmp_path / "packaging" / "find_python.sh"
    find_python.write_text(f"echo {program}\n")
    python = tmp_path / "build" / "wheels" / "test-other-3.10" / "usr" / "bin" / "python"
    if there:
        python.parent.mkdir(parents=True)
        python.symlink_to(program)
    command = ["bash", tmp_path / "packaging" / "test_wheels.sh", "dist", "other", "3.10"]
    environment = os.environ | {"TESTS": "tests/test_smoke.py", "PACKAGES": "pytest"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1]
    assert row.endswith("longcat 1 | not counted packages | 3 passed |") if there else "is not run" in row, row


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/bash\n" + text)
    path.chmod(0o755)


@pytest.mark.parametrize("module, glibc", [("other", "26"), ("x86_64", "26"), ("other", "31")])
def test_a_wheel_of_another_architecture(tmp_path, module, glibc):
    """It has the tag of glibc 2.28. A module that its Python would not find, or symbols of a later glibc, fail."""
    shutil.copytree(ROOT / "packaging", tmp_path / "packaging")
    tools, python = tmp_path / "venv" / "bin", tmp_path / "build" / "wheels" / "python-3.11"
    raw = tmp_path / "build" / "wheels" / "other" / "raw" / "longcat_runtime-1-cp311-cp311-linux_other.whl"
    program(
        tools / "python",
        f'case "$*" in *zipfile*) echo longcat/_core.cpython-311-{module}-linux-gnu.so ;; *) echo echo ;; esac',
    )
    program(tools / "auditwheel", f"mkdir $6 && cp $7 $6/longcat_runtime-1-cp311-cp311-manylinux_2_{glibc}_other.whl")
    program(tools / "wheel", 'mv "$5" "$(dirname "$5")/longcat_runtime-1-cp311-cp311-$4.whl"')
    program(tmp_path / "packaging" / "find_python.sh", "echo python3")
    program(python / "bin" / "python", f'echo "$SKBUILD_CMAKE_DEFINE" > "{tmp_path}/defines" && touch "{raw}"')
    (python / ".installed").touch()
    command = ["bash", tmp_path / "packaging" / "wheels.sh", "dist", "other", "3.11"]
    environment = os.environ | {"BUILD_VENV": "venv", "CMAKE_DEFINE": "A=B"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    good = (module, glibc) == ("other", "26")
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    made = [path.name for path in (tmp_path / "dist").iterdir()]
    assert made == (["longcat_runtime-1-cp311-cp311-manylinux_2_28_other.whl"] if good else [])
    defines = (tmp_path / "defines").read_text().strip().split(";")
    assert defines[-2:] == ["A=B", "PYTHON_MODULE_EXTENSION=.cpython-311-other-linux-gnu.so"]


def test_wheels_of_several_pythons_share_objects(tmp_path):
    """scikit-build-core deletes them where its file names the environment of another Python."""
    shutil.copytree(ROOT / "packaging", tmp_path / "packaging")
    wheels = tmp_path / "build" / "wheels"
    info = wheels / "other" / "cmake" / ".skbuild-info.json"
    tools = tmp_path / "venv" / "bin"
    program(tools / "python", "echo echo")
    program(tmp_path / "packaging" / "find_python.sh", "echo python3")
    (wheels / "python-3.11").mkdir(parents=True)
    (wheels / "python-3.11" / ".installed").touch()
    program(wheels / "python-3.11" / "bin" / "python", f'test ! -e "{info}" && touch "{tmp_path}/shared"')
    info.parent.mkdir(parents=True)
    info.touch()
    command = ["bash", tmp_path / "packaging" / "wheels.sh", "dist", "other", "3.11"]
    subprocess.run(command, capture_output=True, env=os.environ | {"BUILD_VENV": "venv", "CMAKE_DEFINE": "A=B"})
    assert (tmp_path / "shared").exists()


def test_commands_suit_the_pip_of_debian_12():
    """Its version, which Python 3.10 brings too, knows --config-settings and no -C."""
    pages = [ROOT / "Containerfile", *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert [
        line for page in pages for line in page.read_text().splitlines() if re.search(r"pip install.* -C ", line)
    ] == []


def serve_arguments() -> dict[str, list[str]]:
    """Arguments of `longcat serve` in what starts it."""
    container = (ROOT / "Containerfile").read_text(encoding="utf-8")
    start = re.search(r"^ExecStart=(.*)$", SERVICE.read_text(encoding="utf-8"), re.MULTILINE)
    command = re.search(r"^CMD (\[.*\])$", container, re.MULTILINE)
    composed = re.search(r"^    command: (\[.*\])$", COMPOSE.read_text(encoding="utf-8"), re.MULTILINE)
    assert start and command and composed
    return {
        "service": shlex.split(start[1])[1:],
        "container": json.loads(command[1]),
        "compose": json.loads(composed[1]),
    }


@pytest.mark.parametrize("name", ["service", "container", "compose"])
def test_flags_of_the_server(name):
    command, *arguments = serve_arguments()[name]
    assert command == "serve"
    parser = Parser(prog="longcat serve")
    add_arguments(parser)
    parser.parse_args(arguments)


def test_the_container_copies_what_a_build_reads():
    copied = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert all((ROOT / name).exists() for name in copied)
    assert {"CMakeLists.txt", "LICENSE", "README.md", "cpp", "cuda", "pyproject.toml", "python"} == set(copied)


def test_the_service_is_valid(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    unit = tmp_path / SERVICE.name
    unit.write_text(re.sub(r"/opt/longcat/bin/longcat", sys.executable, SERVICE.read_text(encoding="utf-8")))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
