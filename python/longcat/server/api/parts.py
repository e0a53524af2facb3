"""Divides an answer into parts in order: reasoning, texts and calls, as /v1/messages and /v1/responses show it.

Whole answers and streams both use it, so that they have the same content.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from longcat.chat.reader import ChatChunk
from longcat.chat.tool_text import json_value

REASONING, TEXT, CALL = "reasoning", "text", "call"
BEGIN, ADD, END = "begin", "add", "end"
_CUTTING = ("length", "error", "abort")


@dataclass
class Part:
    """One part of an answer.

    Args:
        index: of the part in the answer.
        kind: REASONING, TEXT or CALL.
        name: of the tool that a call calls.
        is_cut: the end of the answer cut it off.
    """

    index: int
    kind: str
    name: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:24])
    pieces: list[str] = field(default_factory=list)
    is_cut: bool = False

    @property
    def text(self) -> str:
        """The reasoning, the text, or the arguments as JSON."""
        return "".join(self.pieces)


class Parts(list[Part]):
    """The parts so far, and the number of tokens that are reasoning."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reasoning = 0
        self._open: Part | None = None
        self._call_index = -1

    def take(self, chunk: ChatChunk) -> list[tuple[str, Part, str]]:
        """Returns what a chunk adds: (BEGIN, part, ""), (ADD, part, its new text), (END, part, "")."""
        news: list[tuple[str, Part, str]] = []
        self.num_reasoning += len(chunk.token_ids) if chunk.reasoning_delta else 0
        for kind, text in ((REASONING, chunk.reasoning_delta), (TEXT, chunk.delta)):
            if text:
                news += self._add(kind, text)
        for call in chunk.tool_calls:
            if call.name is not None:
                news += self._begin(CALL, call.name)
                self._call_index = call.index
            if call.arguments:
                news += self._add(CALL, call.arguments)
        if chunk.finish_reason is not None:
            if self._open is not None:
                is_call, text = self._open.kind == CALL, self._open.text
                self._open.is_cut = (
                    not isinstance(json_value(text), dict) if is_call else chunk.finish_reason in _CUTTING
                )
            news += self._end()
        return news

    def _add(self, kind: str, text: str) -> Iterator[tuple[str, Part, str]]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        self._open.pieces.append(text)
        yield ADD, self._open, text

    def _begin(self, kind: str, name: str = "") -> Iterator[tuple[str, Part, str]]:
        yield from self._end()
        self._open = Part(len(self), kind, name)
        self.append(self._open)
        yield BEGIN, self._open, ""

    def _end(self) -> Iterator[tuple[str, Part, str]]:
        if self._open is not None:
            yield END, self._open, ""
            self._open = None
