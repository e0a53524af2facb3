"""A program in a pseudo-terminal: what it shows, and what a user types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Mapping, Sequence

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>()][A-Z0-9]?|\x1b\][^\x07]*\x07")


class Terminal:
    """Starts a program in a terminal of 100 columns.

    Args:
        variables: of the environment, in addition to this process's.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str] | None = None):
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execve(command[0], list(command), {**os.environ, **(variables or {})})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.raw = ""
        self._mark = 0  # in `shown`, behind the text that was waited for
        self.code: int | None = None

    @property
    def shown(self) -> str:
        """All text so far, without the codes that move the cursor and set colours."""
        return _ESCAPES.sub("", self.raw)

    def write(self, text: str) -> None:
        """Types."""
        os.write(self._fd, text.encode())

    def wait_for(self, text: str, timeout: float = 20) -> str:
        """Waits for a text behind the last one that was waited for; returns the text up to its end."""
        deadline = time.monotonic() + timeout
        while (found := self.shown.find(text, self._mark)) < 0:
            assert time.monotonic() < deadline, f"{text!r} not in {self.shown[self._mark :]!r} of {self.shown}"
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.raw += os.read(self._fd, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the program ended before {text!r}: {self.shown}") from None
        begin, self._mark = self._mark, found + len(text)
        return self.shown[begin : self._mark]

    def end(self, timeout: float = 30, key: str = "") -> int:
        """Waits for the end, and kills the program after `timeout` seconds; returns the exit code.

        Types `key` again after each second without output: between two prompts, the line discipline swallows it.
        """
        deadline, data = time.monotonic() + timeout, b"-"
        while data:
            left = deadline - time.monotonic()
            if left <= 0:
                os.kill(self._pid, signal.SIGKILL)
            elif not select.select([self._fd], [], [], min(1.0, left))[0]:
                self.write(key)
                continue
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                data = b""
            self.raw += data.decode(errors="replace")
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code
