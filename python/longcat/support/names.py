"""Finds the nearest name to a misspelt keyword, and the name under which this package is installed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an unknown keyword. It names the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(names)
    return TypeError(f'{kind} has no parameter "{name}": {hint}')


def install_command(extra: str) -> str:
    """The command that adds an extra to this installation.

    The distribution is `longcat-runtime`: the name `longcat` on PyPI belongs to another package.
    """
    return f"pip install 'longcat-runtime[{extra}]'"
