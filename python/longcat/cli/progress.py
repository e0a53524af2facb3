"""Shows a progress bar over bytes, on standard error."""

from __future__ import annotations

import sys
from typing import TextIO


class ByteBar:
    """A progress bar that appears in a terminal when the work takes longer than a moment."""

    def __init__(self, label: str):
        self._label = label

    def __enter__(self) -> ByteBar:
        from tqdm import tqdm

        options = dict(unit="B", unit_scale=True, delay=0.5, leave=False, disable=None)  # None: but in a terminal
        self._bar = tqdm(desc=self._label, total=0, **options)
        return self

    def update(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def print(self, line: str, file: TextIO | None = None) -> None:
        """Prints a line of output above the bar."""
        self._bar.clear()
        print(line, file=file or sys.stdout, flush=True)

    def __exit__(self, *exc: object) -> None:
        self._bar.close()
