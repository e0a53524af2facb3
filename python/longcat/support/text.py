"""Text for reports and messages: counts, sizes, shortened lists, and printable text from files."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str, max_chars: int = 4000) -> str:
    """`text` from a file as one line that a terminal can show safely."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return line if len(line) <= max_chars else line[:max_chars] + "..."


def count(n: int, noun: str) -> str:
    """A count with its noun: "1 file", "2,500 files"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def bytes_text(n: int) -> str:
    """A size in bytes: "7.30 GB", "4.25 MB", "1.00 kB", "12 B"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n} B"


def some_of(items: Iterable[str], separator: str = ", ", shown: int = 4) -> str:
    """The first few items, and the number of further ones."""
    listed = list(items)
    more = f"{separator}and {len(listed) - shown} more" if len(listed) > shown else ""
    return separator.join(listed[:shown]) + more
