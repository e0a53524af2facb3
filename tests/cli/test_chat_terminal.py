"""`longcat chat` in a terminal: what is one turn."""

import os
import pty
import select
import sys
import time

import pytest

PROGRAM = """
import sys
sys.modules["readline"] = None if {plain} else sys.modules.get("readline")
from longcat.cli.commands.chat import user_turns
print("begin", flush=True)
for turn in user_turns():
    print("turn", repr(turn), flush=True)
"""


class Terminal:
    """The turns of a program in a pseudo-terminal."""

    def __init__(self, plain: bool):
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execve(
                sys.executable, [sys.executable, "-c", PROGRAM.format(plain=plain)], {**os.environ, "TERM": "dumb"}
            )
        self.shown = ""
        self.wait_for("> ")

    def write(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._fd], [], [], 0.1)[0]:
                self.shown += os.read(self._fd, 4096).decode()

    def close(self) -> None:
        self.write("\x04")
        os.waitpid(self._pid, 0)
        os.close(self._fd)


@pytest.fixture(params=[True, False], ids=["plain", "readline"])
def terminal(request):
    made = Terminal(request.param)
    yield made
    made.close()


@pytest.mark.parametrize(
    "written, turn",
    [
        ("one line\n", "one line"),
        ("first\nsecond\nthird\n", "first\nsecond\nthird"),
        ("def f():\n    return 1\n\nprint(f())\n", "def f():\n    return 1\n\nprint(f())"),
        ("typed \\\nand more\n", "typed \nand more"),
    ],
)
def test_pasted_lines_are_one_turn(terminal, written, turn):
    terminal.write(written)
    terminal.wait_for(f"turn {turn!r}")
    assert terminal.shown.count("turn '") == 1


def test_lines_typed_one_after_another_are_turns(terminal):
    for index, text in enumerate(("first", "second"), start=1):
        terminal.write(text + "\n")
        terminal.wait_for(f"turn {text!r}")
        assert terminal.shown.count("turn '") == index
