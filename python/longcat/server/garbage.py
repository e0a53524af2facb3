"""Delays full garbage collections until the server is idle.

A full collection looks at every object and stops all threads. With large bodies alive it takes half a second, in which
no request is answered. Python collects young objects as usual. Full collections wait until no request is open, or until
memory has grown much.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os

_NEVER = 1 << 30
_MOST_GROWTH = 512 << 20  # bytes
_IDLE_LOOKS = 4  # in a row


class FullCollections:
    """Makes full collections in Python's place. Objects that exist at the start are never collected."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _NEVER)
        self._bytes = _resident_bytes()
        self._num_idle = 0

    def consider(self, is_idle: bool) -> None:
        """Makes a full collection if no request is open, or if memory has grown much.

        Args:
            is_idle: no request is open.
        """
        self._num_idle = self._num_idle + 1 if is_idle else 0
        may_have_garbage = gc.get_count()[2] > 0
        if (self._num_idle >= _IDLE_LOOKS and may_have_garbage) or _resident_bytes() > self._bytes + _MOST_GROWTH:
            gc.collect()
            _trim()
            self._bytes = _resident_bytes()


def _trim() -> None:
    """Gives free memory back to the system: malloc keeps it."""
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _resident_bytes() -> int:
    """Returns the memory of this process without mapped files [bytes]."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
