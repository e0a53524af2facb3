"""Which checkpoint the examples run: the first argument, else the small one beside this file."""

import sys
from pathlib import Path


def path() -> str:
    return sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "longcat-tiny")
