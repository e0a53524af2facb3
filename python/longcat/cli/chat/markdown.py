"""Markdown for a terminal, rendered while it arrives: no text is held back but a table's, and none is rewritten."""

from __future__ import annotations

import re
from collections.abc import Callable

BOLD, ITALIC, DIM, CODE, HEAD, RESET = "\x1b[1m", "\x1b[3m", "\x1b[2m", "\x1b[36m", "\x1b[1;4m", "\x1b[0m"

# The start of a line that may still become one of these is kept until it is known.
_UNSURE = re.compile(r"[ \t]*(?:#{1,6}|[-*+]|>|`{1,2}|\||-{2,}|\*{2,}|\d{1,3}[.)]?)?")
_HEADING = re.compile(r"(#{1,6}) +")
_BULLET = re.compile(r"([ \t]*)[-*+] +")
_QUOTE = re.compile(r"> ?")
_FENCE = re.compile(r"[ \t]*```+(.*)")
_RULE = re.compile(r"[ \t]*(?:-[ \t]*){3,}|[ \t]*(?:\*[ \t]*){3,}")
_SEPARATOR = re.compile(r"[|:\- \t]+")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a model's text moves no cursor and sets no title


def visible(text: str) -> str:
    """Returns a text without the characters that control a terminal. Line ends and tabs stay."""
    return _CONTROL.sub("", text)


class MarkdownStream:
    """Writes Markdown as it arrives: headings, emphasis, code, lists, quotes, tables.

    Args:
        write: takes text for the terminal.
        width: returns the columns that a text takes; Chinese characters take two.
        color: False writes no styles, as NO_COLOR asks.
    """

    def __init__(self, write: Callable[[str], object], width: Callable[[str], int], color: bool = True):
        self._write = write
        self._width = width
        self._color = color
        self._line = ""  # the text of a line whose kind is not known, of a table row or of a fence
        self._kind = "unknown"  # of the current line: unknown, text, row, fence or code
        self._in_code = False
        self._table: list[str] = []
        self._styles: list[str] = []  # of the current line
        self._tick = ""  # the mark that may begin or end a style: *, ** or `
        self._before = ""  # the character before the mark

    def push(self, text: str) -> None:
        """Takes the next part of the text."""
        for character in visible(text):
            if character == "\n":
                self._end_line()
            else:
                self._take(character)

    def finish(self) -> None:
        """Writes what is held back, and ends all styles."""
        if self._line or self._kind != "unknown":
            self._end_line(last=True)
        self._flush_table()

    # --- lines -----------------------------------------------------------------------------------------------------

    def _take(self, character: str) -> None:
        if self._kind == "text":
            self._inline(character)
            return
        self._line += character
        if self._kind == "code":
            if not _FENCE.match(self._line) and not _may_be_fence(self._line):
                self._write(self._line)
                self._kind, self._line = "code text", ""
        elif self._kind == "code text":
            self._write(character)
            self._line = ""
        elif self._kind == "unknown":
            self._decide()

    def _decide(self) -> None:
        """Finds the kind of a line from its first characters, when they suffice."""
        line = self._line
        if line.lstrip().startswith("|"):
            self._kind = "row"
            return
        if line.lstrip().startswith("```"):
            self._kind = "fence"
            return
        if _UNSURE.fullmatch(line) or _RULE.fullmatch(line):
            return
        self._start_text()

    def _start_text(self) -> None:
        """Writes the beginning of a line of text, with its mark."""
        self._flush_table()
        line, self._line, self._kind = self._line, "", "text"
        if head := _HEADING.match(line):
            self._open(HEAD)
            line = line[head.end() :]
        elif bullet := _BULLET.match(line):
            self._write(bullet[1] + "\u2022 ")
            line = line[bullet.end() :]
        elif quote := _QUOTE.match(line):
            self._write(self._styled(DIM, "\u2502 "))
            line = line[quote.end() :]
        for character in line:
            self._inline(character)

    def _end_line(self, last: bool = False) -> None:
        kind, line = self._kind, self._line
        end = "" if last else "\n"
        self._kind, self._line = ("code" if self._in_code else "unknown"), ""
        if kind == "row":
            self._table.append(line)
        elif kind == "fence" or (kind == "code" and _FENCE.fullmatch(line)):
            self._flush_table()
            self._in_code = not self._in_code
            self._kind = "code" if self._in_code else "unknown"
            self._write(self._styled(DIM, line.strip()) + (CODE if self._in_code and self._color else "") + end)
        elif kind in ("code", "code text"):
            self._write(line + end)
            if last and self._color:
                self._write(RESET)
        elif kind == "unknown" and line and _RULE.fullmatch(line):
            self._flush_table()
            self._write(self._styled(DIM, "\u2500" * 20) + end)
        else:
            self._line = line
            if kind == "unknown":
                self._start_text()
            self._end_marks()
            self._close_all()
            self._kind = "unknown"
            self._write(end)

    # --- inside a line -----------------------------------------------------------------------------------------------

    def _inline(self, character: str) -> None:
        if self._tick and character == self._tick[-1] == "*" and len(self._tick) < 2:
            self._tick += character
            return
        if self._tick:
            self._apply_mark(character)
        if character in "*`" and not (character == "*" and CODE in self._styles):
            self._tick = character
            return
        self._before = character
        self._write(character)

    def _apply_mark(self, following: str) -> None:
        """Begins or ends the style of a mark, or writes the mark where it is text, as in 2 * 3."""
        mark, self._tick = self._tick, ""
        style = {"*": ITALIC, "**": BOLD, "`": CODE}[mark]
        if style in self._styles:
            self._styles.remove(style)
            self._restyle()
        elif mark == "`" or (following and not following.isspace()):
            self._open(style)
        else:
            self._write(mark)
        self._before = mark

    def _end_marks(self) -> None:
        if self._tick:
            self._apply_mark("")

    def _open(self, style: str) -> None:
        self._styles.append(style)
        if self._color:
            self._write(style)

    def _restyle(self) -> None:
        if self._color:
            self._write(RESET + "".join(self._styles))

    def _close_all(self) -> None:
        if self._styles:
            self._styles = []
            self._restyle()

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{RESET}" if self._color else text

    # --- tables ------------------------------------------------------------------------------------------------------

    def _flush_table(self) -> None:
        """Writes the rows that are held back, with columns of one width."""
        rows = [
            [cell.strip() for cell in row.strip().strip("|").split("|")]
            for row in self._table
            if not _SEPARATOR.fullmatch(row)
        ]
        self._table = []
        if not rows:
            return
        columns = max(map(len, rows))
        rows = [[*row, *[""] * (columns - len(row))] for row in rows]
        widths = [max(self._width(_plain(row[column])) for row in rows) for column in range(columns)]
        for index, row in enumerate(rows):
            cells = []
            for cell, width in zip(row, widths, strict=True):
                text = _plain(cell)
                room = " " * (width - self._width(text))
                cells.append((self._styled(BOLD, text) if index == 0 else text) + room)
            self._write("  ".join(cells).rstrip() + "\n")


def _may_be_fence(line: str) -> bool:
    return not line.lstrip(" \t").rstrip("`")


def _plain(cell: str) -> str:
    """Returns a cell without the marks of emphasis and code."""
    return re.sub(r"\*\*(.+?)\*\*|`(.+?)`", lambda m: m[1] or m[2], cell)
