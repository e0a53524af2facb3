"""Text for reports and messages: counts, sizes, lists cut short, and strings from files made fit to print."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str, max_chars: int = 4000) -> str:
    """`text` from a file as one line that cannot disturb a terminal."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return line if len(line) <= max_chars else line[:max_chars] + "..."


def count(n: int, noun: str) -> str:
    """ "1 file", "2,500 files"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def bytes_text(n: int) -> str:
    """ "7.30 GB", "4.25 MB", "1.00 kB", "12 B"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} B"


def some_of(items: Iterable[str], separator: str = ", ", shown: int = 4) -> str:
    """The first few items and how many more there are."""
    listed = list(items)
    more = f"{separator}and {len(listed) - shown} more" if len(listed) > shown else ""
    return separator.join(listed[:shown]) + more
