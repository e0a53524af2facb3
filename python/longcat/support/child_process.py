"""Runs programs that use this package in another Python process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from longcat._core import Error

_OUR_ERROR = re.compile(r"(?:longcat\.\w+|ValueError|TypeError|OSError): (?=\[)")


def environment() -> dict[str, str]:
    """The environment in which `import longcat` finds the package of this process."""
    package = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}


def run_program(what: str, program: str, *arguments: str) -> str:
    """Runs a Python program and returns its standard output.

    Args:
        what: the program's subject, for messages.
    Raises:
        longcat.Error: the program failed; with the message of its exception.
    """
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["Python does not start"])[-1]
        ours = _OUR_ERROR.match(last)
        raise Error(last[ours.end() :] if ours else f"[{what}] {last}")
    return done.stdout
