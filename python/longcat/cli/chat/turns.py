"""Reads the user's turns: from a terminal with editing, history and paste, or from a pipe."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

_PASTE_SECONDS = 0.05  # within which the next line of a pasted text is there


class Turns(Protocol):
    """A source of turns."""

    def read(self, draft: str = "") -> str | None:
        """Returns the next turn that has text, or None at the end.

        Args:
            draft: text that the user finds typed already.
        """


def open_turns(commands: Sequence[str]) -> Turns:
    """Returns the source for standard input: an editor in a terminal, lines otherwise.

    Args:
        commands: that the Tab key completes.
    """
    if sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Editor(commands)
    return Lines()


class Lines:
    """Turns of a pipe, or of a terminal that moves no cursor.

    A backslash at the end of a line joins it to the next one. A terminal also joins lines that arrive at once: no
    person types so fast, so they were pasted.
    """

    def read(self, draft: str = "") -> str | None:
        interactive = sys.stdin.isatty()
        lines: list[str] = []
        while True:
            try:
                line = input(("... " if lines else "> ") if interactive else "")
            except EOFError:
                if interactive:
                    print()
                return None
            except KeyboardInterrupt:  # gives up the line, not the conversation
                print()
                lines = []
                continue
            if line.endswith("\\"):
                lines.append(line[:-1])
                continue
            if interactive and _input_waits():
                lines.append(line)
                continue
            text = "\n".join([*lines, line]).strip()
            if text:
                return text
            lines = []


def _input_waits() -> bool:
    """Returns whether standard input has more text ready."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
    except (OSError, ValueError):  # no file
        return False


class Editor:
    """Turns of a terminal, with prompt_toolkit: pasted lines stay together, and the history lasts between runs."""

    def __init__(self, commands: Sequence[str]):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter

        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            prompt_continuation="... ",
            history=_history(),
            key_bindings=_keys(),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            enable_history_search=True,
        )

    def read(self, draft: str = "") -> str | None:
        while True:
            try:
                text = self._session.prompt("> ", default=draft)
            except EOFError:
                return None
            except KeyboardInterrupt:  # gives up the text, not the conversation
                draft = ""
                continue
            if text.strip():
                return text.strip()


def history_file() -> Path:
    """Returns the file that keeps the turns of earlier runs."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "longcat", "chat_history")


def _history() -> History:
    """Returns the history of earlier runs, which the user alone may read; in memory where no file can be."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    file = history_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def _keys() -> KeyBindings:
    """Returns the keys of the editor: Enter sends, Alt-Enter and Ctrl-J begin a line, as Enter does behind a \\."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
