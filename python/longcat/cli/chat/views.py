"""Where completions are shown: as plain text for a pipe, or rendered for a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Protocol

from longcat.cli.chat.markdown import DIM, RESET, MarkdownStream
from longcat.request.outputs import RequestOutput


class View(Protocol):
    """Shows one completion after another."""

    def reasoning(self, text: str) -> None:
        """Takes a part of the reasoning."""

    def content(self, text: str) -> None:
        """Takes a part of the content."""

    def end(self) -> None:
        """Ends a completion, whole or stopped."""

    def note(self, text: str) -> None:
        """Prints a line about the conversation."""

    def speed(self, output: RequestOutput) -> None:
        """Prints the number and the speed of the tokens of a completion."""


class PlainView:
    """Content as it is, without reasoning and speed."""

    def __init__(self) -> None:
        self._printed = False

    def reasoning(self, text: str) -> None:
        pass

    def content(self, text: str) -> None:
        print(text, end="", flush=True)
        self._printed = self._printed or bool(text)

    def end(self) -> None:
        if self._printed:
            print(flush=True)
        self._printed = False

    def note(self, text: str) -> None:
        print(f"[{text}]", flush=True)

    def speed(self, output: RequestOutput) -> None:
        pass


class TerminalView:
    """Markdown while it arrives. Reasoning is folded into one line, which /thinking unfolds."""

    def __init__(self) -> None:
        self._color = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        self._began = 0.0  # of the reasoning [s]
        self._words = 0  # of the reasoning
        self._content: MarkdownStream | None = None

    def reasoning(self, text: str) -> None:
        self._began = self._began or time.monotonic()
        self._words += len(text.split())
        line = f"thinking ... {self._words} words"[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + self._dim(line))

    def content(self, text: str) -> None:
        if not text:
            return
        if self._content is None:
            self._fold()
            from prompt_toolkit.utils import get_cwidth

            self._content = MarkdownStream(self._write, get_cwidth, self._color)
        self._content.push(text)
        sys.stdout.flush()

    def end(self) -> None:
        if self._content is not None:
            self._content.finish()
            print(flush=True)
        else:
            self._fold()
        self._content = None

    def note(self, text: str) -> None:
        print(self._dim(f"[{text}]"), flush=True)

    def speed(self, output: RequestOutput) -> None:
        tokens, metrics = sum(len(one.token_ids) for one in output.outputs), output.metrics
        first = f", first after {1000 * metrics.first_token_s:.0f} ms" if metrics.first_token_s is not None else ""
        self.note(f"{tokens} tokens, {metrics.tokens_per_second(tokens):.1f} tokens/s{first}")

    def _fold(self) -> None:
        if self._began:
            seconds = time.monotonic() - self._began
            self._write(
                f"\r\x1b[K{self._dim(f'[thought for {seconds:.1f} s, {self._words} words; /thinking shows it]')}\n"
            )
            sys.stdout.flush()
        self._began, self._words = 0.0, 0

    def _write(self, text: str) -> None:
        sys.stdout.write(text)

    def _dim(self, text: str) -> str:
        return f"{DIM}{text}{RESET}" if self._color else text
