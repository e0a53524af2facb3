"""Type checkers catch wrong uses of the public names, and take right ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("mypy")


def errors(*paths: str) -> set[tuple[str, int, str]]:
    """mypy's errors: file, line and code."""
    command = [sys.executable, "-m", "mypy", *paths]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(\S+?):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    return {(Path(path).name, int(line), code) for path, line, code in found}


@pytest.mark.slow
def test_mypy_finds_each_wrong_use_and_no_other():
    lines = (ROOT / "tests" / "typing" / "wrong_uses.py").read_text(encoding="utf-8").splitlines()
    marked = [(number, re.search(r"# error: ([a-z-]+)$", line)) for number, line in enumerate(lines, start=1)]
    expected = {("wrong_uses.py", number, found[1]) for number, found in marked if found}
    assert len(expected) > 20
    assert (
        errors("tests/typing/wrong_uses.py", "tests/typing/right_uses.py", "tests/support/stub_engine.py") == expected
    )
