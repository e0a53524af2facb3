"""An answer's text, as it arrives -> what it adds to the chat message. `tool_parser.py` has the rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longcat.chat.tool_parser import (
    CALL,
    CALL_END,
    KEY,
    KEY_END,
    THINK,
    THINK_END,
    VALUE,
    VALUE_END,
    Schemas,
    build_message,
    json_text,
    parse_call,
    value_of,
)


@dataclass(frozen=True)
class ToolCallDelta:
    """News of the tool call at `index` of the message.

    The first delta of a call has its `name`; `arguments` of all of them, concatenated, are one JSON object. A key may
    occur twice in it, then the later value counts, as `json.loads` has it. `dropped`: forget what came for this index,
    the call was cut off or malformed; a corrected one may follow under the same index, again with its `name`.
    """

    index: int
    name: str | None = None
    arguments: str = ""
    dropped: bool = False


@dataclass(frozen=True)
class Delta:
    """New text of a message, in one of the fields."""

    content: str = ""
    reasoning_content: str = ""
    tool_call: ToolCallDelta | None = None


class _Stripped:
    """Text that arrives in pieces, without the white space around it: at the end it is held back until more comes."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._space = ""

    def push(self, piece: str) -> str:
        """What can be given out now."""
        piece = self._space + piece if self._parts else piece.lstrip()
        ready = piece.rstrip()
        self._space = piece[len(ready) :] if ready or self._parts else ""
        if ready:
            self._parts.append(ready)
        return ready

    @property
    def text(self) -> str:
        return "".join(self._parts)


class StreamingResponseParser:
    """`parse_model_response` for text that arrives in pieces, however it is cut.

    Content and reasoning are given out as they come, except what may be the beginning of a tag and white space at the
    end. A tool call begins with its name; arguments of type string are given out character by character, others when
    complete. Folding all deltas gives `message`, and `message` is `parse_model_response` of the whole text.

    Args:
        tools: the tools that were declared.
        hold_after_think: the whole parse takes the last </longcat_think> for the end of the reasoning, and which is
            the last is known at the end of the text only. True: what follows a think block is held back until
            `finish`. False: the first end tag counts, and what follows is given out as it comes; the result then
            differs from the whole parse for an answer that starts with a think block and has a second end tag. Answers
            that do not start with a think block stream the same either way.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None = None, *, hold_after_think: bool = True):
        self._schemas = Schemas(tools)
        self._hold_after_think = hold_after_think
        self._buffer = ""  # what has arrived and is not taken yet, from _at on
        self._at = 0
        self._final = False
        self._state = self._start  # takes from the buffer; returns False when it needs more text
        self._deltas: list[Delta] = []
        self._reasoning = _Stripped()
        self._content = _Stripped()
        self._held: list[str] = []
        self._calls: list[tuple[str, dict[str, Any]]] = []
        self._begin_call()

    @property
    def message(self) -> dict[str, Any]:
        """The message so far: after `finish`, the whole. Calls appear when they are complete."""
        return build_message(self._reasoning.text, self._content.text, self._calls)

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the answer; returns what it adds to the message."""
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        while self._state():  # until it needs more text
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> list[Delta]:
        """The answer is over: returns what was held back, and drops a call that was cut off. `push` ends here."""
        self._final = True
        deltas = self.push("")
        if self._body:
            self._settle(parse_call("".join(self._body[1:]), self._schemas, closed=False))
            self._body.clear()
        self._state = self._finished
        return deltas + self.push("")

    def _finished(self) -> bool:
        return False

    # Taking text from the buffer.

    def _until(self, *tags: str) -> tuple[str, str]:
        """The text before the first of `tags` and that tag; "" for the tag when it has not come.

        Text at the end that may be the beginning of one of `tags` stays in the buffer. No tag contains another "<".
        """
        first, found = len(self._buffer), ""
        for tag in tags:
            position = self._buffer.find(tag, self._at, first + len(tag))
            if 0 <= position < first:
                first, found = position, tag
        if not found and not self._final:
            last = self._buffer.rfind("<", self._at)
            if last >= 0 and any(tag.startswith(self._buffer[last:]) for tag in tags):
                first = last
        text = self._buffer[self._at : first]
        self._at = first + len(found)
        return text, found

    def _spaces(self) -> str:
        """The white space that comes next."""
        start = self._at
        while self._at < len(self._buffer) and self._buffer[self._at].isspace():
            self._at += 1
        return self._buffer[start : self._at]

    def _next_is(self, tag: str) -> bool | None:
        """Takes `tag` if it comes next; None when more text is needed to tell."""
        if self._buffer.startswith(tag, self._at):
            self._at += len(tag)
            return True
        if not self._final and len(self._buffer) - self._at < len(tag) and tag.startswith(self._buffer[self._at :]):
            return None
        return False

    # Outside calls.

    def _start(self) -> bool:
        self._spaces()
        thinks = self._next_is(THINK)
        if thinks is not None:
            self._state = self._in_think if thinks else self._in_content
        return thinks is not None

    def _in_think(self) -> bool:
        text, tag = self._until(THINK_END)
        self._emit(reasoning_content=self._reasoning.push(text))
        if tag:
            self._state = self._after_think if self._hold_after_think else self._in_content
        return bool(tag)

    def _after_think(self) -> bool:
        text, tag = self._until(THINK_END)
        self._held.append(text)
        if tag:
            self._emit(reasoning_content=self._reasoning.push(THINK_END + "".join(self._held)))
            self._held.clear()
        elif self._final:
            self._buffer, self._at = "".join(self._held), 0
            self._state = self._in_content
            return True
        return bool(tag)

    def _in_content(self) -> bool:
        text, tag = self._until(CALL)
        self._emit(content=self._content.push(text))
        return self._open_call(tag)

    def _between_calls(self) -> bool:
        _, tag = self._until(CALL)
        return self._open_call(tag)

    def _open_call(self, tag: str) -> bool:
        if tag:
            self._begin_call()
            self._body.append(tag)
            self._state = self._in_head
        return bool(tag)

    # Inside a call. `_body` has its text so far, from the start tag on.

    def _begin_call(self) -> None:
        self._body: list[str] = []
        self._head = ""
        self._name = ""  # once it is given out
        self._num_pairs = 0  # begun in the arguments given out
        self._key: list[str] = []
        self._value: list[str] = []
        self._string: _Stripped | None = None  # of a value that is given out character by character

    def _in_head(self) -> bool:
        """The name's line. Calls in JSON or with parentheses are taken whole, and those that are none."""
        start = self._at
        while self._at < len(self._buffer) and self._buffer[self._at] not in "\n<(":
            self._at += 1
        run = self._buffer[start : self._at]
        self._body.append(run)
        self._head += run
        if self._head.lstrip().startswith("{"):
            self._state = self._in_raw
            return True
        if self._at == len(self._buffer):
            return False
        name = self._schemas.name(self._head)
        if self._buffer[self._at] == "(" or not name:
            self._state = self._in_raw
        else:
            self._start_call(name)
            self._state = self._in_body
        return True

    def _in_raw(self) -> bool:
        text, tag = self._until(CALL_END)
        self._body.append(text)
        return self._close_call(tag)

    def _in_body(self) -> bool:
        text, tag = self._until(KEY, CALL_END)
        self._body.append(text)
        if tag == KEY:
            self._body.append(tag)
            self._key = []
            self._state = self._in_key
            return True
        return self._close_call(tag)

    def _in_key(self) -> bool:
        text, tag = self._until(KEY_END, CALL_END)
        self._body.append(text)
        self._key.append(text)
        if tag == KEY_END:
            self._body.append(tag)
            self._key.append(tag)
            self._state = self._after_key
            return True
        return self._close_call(tag)

    def _after_key(self) -> bool:
        """A key ends where a value follows at once; else its end tag was part of it."""
        spaces = self._spaces()
        self._body.append(spaces)
        self._key.append(spaces)
        has_value = self._next_is(VALUE)
        if has_value:
            self._body.append(VALUE)
            self._begin_value("".join(self._key).rstrip().removesuffix(KEY_END).strip())
            self._state = self._in_value
        elif has_value is False:
            self._state = self._in_key
        return has_value is not None

    def _begin_value(self, key: str) -> None:
        self._key = [key]
        self._value = []
        if self._schemas.type_of(self._name, key) == "string":
            self._string = _Stripped()
            self._emit_arguments(self._pair_start() + '"')

    def _in_value(self) -> bool:
        text, tag = self._until(VALUE_END, CALL_END)
        self._body.append(text)
        if self._string is not None:
            self._emit_arguments(json.dumps(self._string.push(text), ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)
        if tag == VALUE_END:
            self._body.append(tag)
            self._end_value()
            self._state = self._in_body
            return True
        return self._close_call(tag)

    def _end_value(self) -> None:
        if self._string is not None:
            self._emit_arguments('"')
            self._string = None
        else:
            self._emit_arguments(self._pair_start() + json_text(value_of("".join(self._value), None)))

    def _pair_start(self) -> str:
        self._num_pairs += 1
        return ("{" if self._num_pairs == 1 else ", ") + json_text(self._key[0]) + ": "

    def _close_call(self, tag: str) -> bool:
        if tag:
            self._settle(parse_call("".join(self._body[1:]), self._schemas, closed=True))
            self._body.clear()
            self._state = self._between_calls
        return bool(tag)

    def _settle(self, call: tuple[str, dict[str, Any]] | None) -> None:
        """Ends the open call: what was given out is made to add up to `call`, None for no call."""
        if self._name and (call is None or self._string is not None):  # cut off, or a value that has no end
            self._emit(tool_call=ToolCallDelta(len(self._calls), dropped=True))
            self._name, self._num_pairs = "", 0
        if call is None:
            return
        if not self._name:
            self._start_call(call[0])
        self._emit_arguments("}" if self._num_pairs else json_text(call[1]))
        self._calls.append(call)

    # Giving out.

    def _start_call(self, name: str) -> None:
        self._name = name
        self._emit(tool_call=ToolCallDelta(len(self._calls), name=name))

    def _emit_arguments(self, text: str) -> None:
        if text:
            self._emit(tool_call=ToolCallDelta(len(self._calls), arguments=text))

    def _emit(self, **fields: Any) -> None:
        if any(fields.values()):
            self._deltas.append(Delta(**fields))
