"""Answers to names that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for a misspelt keyword: what was given, the nearest name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    hint = f'did you mean "{near[0]}"?' if near else "known are " + ", ".join(names)
    return TypeError(f'{kind} has no parameter "{name}": {hint}')
