"""Parses the text of a completion as it arrives into parts of a chat message. `tool_parser.py` has the rules."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longcat.chat.call_forms import read_calls, read_object, with_our_tags
from longcat.chat.json_stream import JsonStream
from longcat.chat.tool_schema import Kind, ToolSchema, ToolSchemas
from longcat.chat.tool_text import (
    CALL,
    CALL_END,
    KEY,
    KEY_END,
    THINK,
    THINK_END,
    VALUE,
    VALUE_END,
    json_text,
)
from longcat.support.json_types import Json, JsonObject


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of the tool call at `index` of the message.

    The first delta of a call has its `name`; `arguments` of all of them, concatenated, are one JSON object. A key may
    occur twice in it, then the later value counts, as `json.loads` has it. `dropped`: forget the earlier deltas of
    this index, the call was cut off; its text is content.
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
        """Returns the text that is certain now."""
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

    Content and reasoning are returned as they arrive, except for a possible beginning of a tag and white space at the
    end. A tool call is returned once no required argument can be missing any more. Its text arguments then stream, and
    other arguments follow when they are complete. All deltas together give `message`.

    Args:
        tools: the declared tools.
        hold_after_think: hold back what follows a think block until `finish`, because the last </longcat_think> ends
            the reasoning, as in `parse_model_response`. False: the first one ends it, and the rest streams. That
            differs only if a text starts with a think block and has a second end tag.
        fits: a grammar makes the arguments fit the schema. Then arguments that cannot be text stream as well.
        starts_thinking: the prompt ends inside a think block. All text before the first </longcat_think> is reasoning.
        reads_calls: False: the tags of calls are content.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, object]] | None = None,
        *,
        hold_after_think: bool = True,
        fits: bool = False,
        starts_thinking: bool = False,
        reads_calls: bool = True,
    ):
        self._schemas = ToolSchemas(tools)
        self._fits = fits
        self._hold_after_think = hold_after_think
        self._buffer = ""  # what has arrived and is not taken yet, from _at on
        self._at = 0
        self._final = False
        # Takes from the buffer; returns False when it needs more text.
        self._state = self._in_think if starts_thinking else self._start
        self._reads_calls = reads_calls
        self._deltas: list[Delta] = []
        self._reasoning = _Stripped()
        self._content = _Stripped()
        self._held: list[str] = []
        self._calls: list[tuple[str, JsonObject | str]] = []
        self._begin_call()

    @property
    def message(self) -> JsonObject:
        """Returns the message so far, and the whole message after `finish`. Calls appear when they are complete."""
        return _build_message(self._reasoning.text, self._content.text, self._calls)

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of the completion; returns the parts that it adds to the message."""
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        while self._state():  # until it needs more text
            pass
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self, reason: str | None = None) -> list[Delta]:
        """Ends the completion; returns the parts that were held back. Call no `push` after it.

        Args:
            reason: the finish_reason. None: a call that was cut off is dropped, and its text is content.
                "stop": the same, unless it was given out already. Else (as "length") it stays in the message, with
                arguments that are text: JSON without its end.
        """
        self._final = True
        deltas = self.push("")
        if self._raw:
            self._end_cut_call(reason)
        self._state = self._finished
        return deltas + self.push("")

    def _finished(self) -> bool:
        return False

    # Taking text from the buffer.

    def _until(self, *tags: str) -> tuple[str, str]:
        """Returns the text before the first of `tags`, and that tag; "" for the tag when it has not arrived.

        Text at the end that may be the beginning of one of `tags` stays in the buffer. No tag contains another "<".
        """
        found = _any_of(tags).search(self._buffer, self._at)
        first = found.start() if found else len(self._buffer)
        if found is None and not self._final:
            last = self._buffer.rfind("<", self._at)
            if last >= 0 and any(tag.startswith(self._buffer[last:]) for tag in tags):
                first = last
        text = self._buffer[self._at : first]
        tag = found[0] if found else ""
        self._at = first + len(tag)
        return text, tag

    def _spaces(self) -> str:
        """Returns the white space at the start of the buffer."""
        start = self._at
        while self._at < len(self._buffer) and self._buffer[self._at].isspace():
            self._at += 1
        return self._buffer[start : self._at]

    def _next_is(self, tag: str) -> bool | None:
        """Takes `tag` if the buffer starts with it. Returns None when more text is needed to know."""
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
        if not self._reads_calls:
            text, self._at = self._buffer[self._at :], len(self._buffer)
            self._emit(content=self._content.push(text))
            return False
        text, tag = self._until(CALL)
        if not self._calls:  # text between calls is dropped
            self._emit(content=self._content.push(text))
        if tag:
            self._begin_call()
            self._raw.append(tag)
            self._state = self._in_head
        return bool(tag)

    # Inside a call. `_raw` has its text so far, from the start tag on.

    def _begin_call(self) -> None:
        self._raw: list[str] = []
        self._head = ""
        self._name = ""
        self._tool = _NO_TOOL
        self._stray: list[str] = []  # text of the body that is in no pair
        self._has_stray = False  # and is no white space
        self._pairs: list[tuple[str, Json]] = []
        self._json: list[str] = []  # the arguments as far as they are known
        self._is_shown = False
        self._is_broken = False  # a name without a value
        self._key: list[str] = []
        self._begin_value("")

    def _in_head(self) -> bool:
        """Parses the line of the name. Calls in JSON or with parentheses, and text that is no call, are taken whole."""
        if not self._head:
            self._raw.append(self._spaces())
        if self._at == len(self._buffer):
            return False
        if not self._head and self._buffer[self._at] in "{[`":
            self._state = self._in_raw
            return True
        start = self._at
        while self._at < len(self._buffer) and self._buffer[self._at] not in "\n<({":
            self._at += 1
        run = self._buffer[start : self._at]
        self._raw.append(run)
        self._head += run
        if self._at == len(self._buffer):
            return False
        self._name = self._schemas.name(self._head)
        if self._buffer[self._at] == "(" or not self._schemas.may_be_name(self._name):
            self._name, self._state = "", self._in_raw
        else:
            self._tool = self._schemas[self._name]
            self._state = self._in_body
        return True

    def _in_raw(self) -> bool:
        text, tag = self._until(CALL_END, CALL)
        self._raw.append(text)
        return self._end_call(tag)

    def _in_body(self) -> bool:
        text, tag = self._until(KEY, CALL_END, CALL)
        self._raw.append(text)
        self._stray.append(text)
        self._has_stray = self._has_stray or bool(text.strip())
        if tag != KEY:
            return self._end_call(tag)
        self._raw.append(tag)
        self._key = []
        self._state = self._in_key
        return True

    def _in_key(self) -> bool:
        text, tag = self._until(KEY_END, VALUE, CALL_END, CALL)
        self._raw.append(text)
        self._key.append(text)
        if tag == KEY_END:
            self._raw.append(tag)
            self._state = self._after_key
        elif tag == VALUE:
            self._raw.append(tag)
            self._start_value()
        else:
            if tag:
                self._key_alone()
            return self._end_call(tag)
        return True

    def _after_key(self) -> bool:
        self._raw.append(self._spaces())
        has_value = self._next_is(VALUE)
        if has_value:
            self._raw.append(VALUE)
            self._start_value()
            return True
        if has_value is None or self._at == len(self._buffer):
            return False
        for tag in (KEY, CALL_END, CALL):
            rest = self._buffer[self._at : self._at + len(tag)]
            if tag.startswith(rest) and (rest == tag or not self._final):
                if rest != tag:
                    return False
                self._key_alone()
                self._state = self._in_body
                return True
        self._start_value()  # its start tag is missing
        return True

    def _key_alone(self) -> None:
        """Handles a name without a value: it holds all arguments as one JSON object, or it is an error."""
        arguments = read_object("".join(self._key))
        if arguments is None or self._pairs:
            self._is_broken = True
        else:
            self._pairs += arguments.items()
            self._write("".join(self._pair_start(key) + json_text(value) for key, value in arguments.items()))

    # A value.

    def _start_value(self) -> None:
        self._begin_value(self._tool.key("".join(self._key)))
        self._advance()
        self._state = self._in_value

    def _begin_value(self, key: str) -> None:
        argument = self._tool.argument(key)
        self._value_key = key
        self._value: list[str] = []
        self._kind = Kind.OTHER if argument is None else argument.kind
        self._is_text = False  # given out character by character
        self._json_value = JsonStream() if self._fits and argument is not None and not argument.texts else None
        self._is_begun = False  # something of the value is given out
        self._newline = ""  # held back: it may belong to the form
        self._doubt = 0  # characters after the tag that may have ended the value

    def _in_value(self) -> bool:
        text, tag = self._until(VALUE_END, CALL_END, KEY)
        self._raw.append(text)
        self._value.append(text)
        self._advance(text)
        if tag == VALUE_END:
            self._raw.append(tag)
            self._end_value()
        elif tag:
            self._at -= len(tag)
            self._doubt = len(tag)
            self._state = self._in_doubt
        return bool(tag)

    def _in_doubt(self) -> bool:
        """Decides whether a call's end tag or a name's start tag inside a value is text of the value.

        It is text if the value's own end tag comes before the name's value, or before another call.
        """
        is_key = self._buffer.startswith(KEY, self._at)
        found = _any_of((VALUE_END, VALUE if is_key else CALL)).search(self._buffer, self._at + self._doubt)
        if found is None and not self._final:
            self._doubt = max(self._doubt, len(self._buffer) - self._at - len(VALUE_END))
            return False
        if found is not None and found[0] == VALUE_END:
            text = self._buffer[self._at : found.start()]
            self._at = found.end()
            self._raw += [text, VALUE_END]
            self._value.append(text)
            self._advance(text)
            self._end_value()
        else:
            self._newline = ""
            if self._value:
                self._value = ["".join(self._value).removesuffix("\n")]
            self._end_value()
        return True

    def _advance(self, text: str = "") -> None:
        """Sends the part of a value that is known before its end."""
        if self._json_value is not None:
            if piece := self._json_value.push(text):
                self._write_json(piece)
            return
        if not self._is_text:
            if self._kind is Kind.OTHER:
                return
            text = "".join(self._value)
            if self._kind is Kind.TEXT_OR_NULL and "null".startswith(text.removesuffix("\n")):
                return
            self._is_text = self._is_begun = True
            self._write(self._pair_start(self._value_key) + '"')
        text = self._newline + text
        self._newline = "\n" if text.endswith("\n") else ""
        self._write(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])

    def _end_value(self) -> None:
        text = "".join(self._value)
        value: Json = text
        if self._is_text:
            self._write(json.dumps(self._newline)[1:-1] + '"')
        elif self._json_value is not None:
            value = self._tool.value(self._value_key, text)
            self._write_json(self._json_value.finish())
        else:
            value = self._tool.value(self._value_key, text)
            self._write(self._pair_start(self._value_key) + json_text(value))
        self._pairs.append((self._value_key, value))
        self._is_text = self._is_begun = False
        self._write("")
        self._state = self._in_body

    def _write_json(self, piece: str) -> None:
        start = "" if self._is_begun else self._pair_start(self._value_key)
        self._is_begun = True
        self._write(start + piece)

    def _pair_start(self, key: str) -> str:
        start = ", " if self._json else "{"
        self._json.append("")
        return start + json_text(key) + ": "

    # The end of a call.

    def _end_call(self, tag: str) -> bool:
        """Ends a call at its end tag, or where the next call starts."""
        if not tag:
            return False
        calls = self._read_call()
        if tag == CALL:
            self._at -= len(CALL)
        else:
            self._raw.append(tag)
        self._settle(calls)
        return True

    def _read_call(self) -> list[tuple[str, JsonObject]]:
        """Returns the calls of the body; none if it is not understood or lacks a required argument."""
        body = "".join(self._raw[1:])
        if not self._name:
            return read_calls(body, self._schemas) or self._read_other_tags(body)
        arguments: JsonObject | None = dict(self._pairs)
        if not self._pairs and self._is_broken:
            arguments = None
        elif not self._pairs and self._has_stray:
            arguments = read_object("".join(self._stray))
        if arguments is None:
            return self._read_other_tags(body)
        return [(self._name, arguments)] if self._tool.is_complete(arguments) else []

    def _read_other_tags(self, body: str) -> list[tuple[str, JsonObject]]:
        replaced = with_our_tags(body)
        if replaced is None or CALL in replaced or CALL_END in replaced:
            return []
        parser = StreamingResponseParser()
        parser._schemas = self._schemas
        parser.push(CALL + replaced + CALL_END)
        parser.finish()
        return [(name, call) for name, call in parser._calls if isinstance(call, dict)]

    def _settle(self, calls: list[tuple[str, dict[str, object]]]) -> None:
        """Sends the rest of the call. Text that is no call becomes content."""
        if self._is_shown:
            self._emit_arguments("}")
            self._calls.append((self._name, dict(self._pairs)))
        elif calls:
            for name, arguments in calls:
                self._emit(tool_call=ToolCallDelta(len(self._calls), name=name))
                self._emit_arguments(json_text(arguments))
                self._calls.append((name, arguments))
        else:
            self._emit(content=self._content.push("".join(self._raw)))
        self._begin_call()
        self._state = self._in_content

    def _end_cut_call(self, reason: str | None) -> None:
        """Handles the end of the text inside a call."""
        by_itself = reason in (None, "stop")  # then the end tag is all that may be missing
        if self._state in (self._in_key, self._after_key) and read_object("".join(self._key)) is not None:
            self._key_alone()
            self._state = self._in_body
        is_whole = self._state == self._in_body and by_itself and self._pairs
        if (is_whole and not (self._has_stray and not self._is_shown)) or self._state == self._in_raw:
            calls = self._read_call()
        else:
            calls = []
        if calls:
            self._settle(calls)
        elif (self._is_shown and reason is not None) or (self._name and not by_itself):
            if not self._is_shown:
                self._show()
            self._cut_value()
            if not self._json:
                self._write("{")
            self._calls.append((self._name, "".join(self._json)))
            self._begin_call()
        else:
            if self._is_shown:
                self._emit(tool_call=ToolCallDelta(len(self._calls), dropped=True))
                self._is_shown = False
            self._settle([])

    def _cut_value(self) -> None:
        """Sends the beginning of a value that the end of the text cuts off."""
        if self._state != self._in_value or self._is_text:
            return
        if self._json_value is not None:
            if held := self._json_value.cut():
                self._write_json(held)
        elif text := "".join(self._value).lstrip():
            is_json = _JSON_START.match(text) or any(word.startswith(text) for word in ("true", "false", "null"))
            self._write_json(text if is_json else json.dumps(text, ensure_ascii=False)[:-1])

    # Giving out.

    def _write(self, text: str) -> None:
        """Adds to the arguments. Sends them once no later text can change that this is a call."""
        self._json.append(text)
        if self._is_shown:
            self._emit_arguments(text)
        elif not self._has_stray:
            keys = [key for key, _ in self._pairs] + ([self._value_key] if self._is_begun else [])
            if keys and self._tool.is_complete(keys, for_good=True):
                self._show()

    def _show(self) -> None:
        self._is_shown = True
        self._emit(tool_call=ToolCallDelta(len(self._calls), name=self._name))
        self._emit_arguments("".join(self._json))

    def _emit_arguments(self, text: str) -> None:
        if text:
            self._emit(tool_call=ToolCallDelta(len(self._calls), arguments=text))

    def _emit(self, **fields: Json) -> None:
        if any(fields.values()):
            self._deltas.append(Delta(**fields))


_NO_TOOL = ToolSchema("", {})
_JSON_START = re.compile(r'[\[{"]|-?\d')


@functools.lru_cache(32)
def _any_of(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tags)))


def _build_message(reasoning: str, content: str, calls: Sequence[tuple[str, dict[str, object] | str]]) -> JsonObject:
    """Returns the message of these parts, with calls as (name, arguments). Empty parts are left out."""
    message: JsonObject = {"role": "assistant"}
    if reasoning:
        message["reasoning_content"] = reasoning
    if content:
        message["content"] = content
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return message
