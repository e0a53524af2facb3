"""Parses the JSON of clients in small steps. No step keeps other threads waiting, and too large values end early."""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson

from longcat.support.json_types import Json, JsonObject

MAX_TEXT_BYTES = 4 << 20  # of one text as it is written
MAX_VALUES = 1 << 19  # texts, numbers, lists and objects in a body
MAX_FIELDS = 1 << 16  # lists, objects and their fields
MAX_DEPTH = 128
_STEP = 64 << 10  # bytes between two moments at which other threads may run
_SPACE = re.compile(rb"[ \t\n\r]*")
_SCALAR = re.compile(rb"[-+.0-9a-zA-Z]{1,400}")
_NUMBERS = re.compile(rb"(?:-?[0-9]{1,15}[ \t\n\r]*,[ \t\n\r]*){1,1000}")


class JsonError(ValueError):
    """The bytes are no JSON, or beyond a limit."""


def parse_small(data: bytes | bytearray) -> Json:
    """Parses a short text at once.

    Raises:
        JsonError: `data` is no JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _no_json(data, len(error.doc[: error.pos].encode(errors="replace"))) from None


def parse_large(data: bytes | bytearray, is_wanted: Callable[[], bool] = lambda: True) -> Json:
    """Parses a long text. Call it on a thread of its own.

    Args:
        is_wanted: called now and then; False ends the work.
    Raises:
        JsonError: `data` is no JSON, or beyond a limit above.
    """
    parser = _Parser(data, is_wanted)
    value, at = parser.value(parser.skip(0), 1)
    if at != len(data):
        raise _no_json(data, at)
    return value


class _Parser:
    def __init__(self, data: bytes | bytearray, is_wanted: Callable[[], bool]):
        self._data = data
        self._is_wanted = is_wanted
        self._num_values = 0
        self._num_fields = 0

    def skip(self, at: int) -> int:
        """Returns the next index that is not white space."""
        while True:
            end = _SPACE.match(self._data, at, at + _STEP).end()  # type: ignore[union-attr]
            if end < at + _STEP:
                return end
            at = end

    def value(self, at: int, depth: int) -> tuple[Json, int]:
        """Returns the value at index `at`, and the next index behind it that is not white space."""
        self._count(values=1)
        value: Json
        first = self._data[at : at + 1]
        if first == b'"':
            value, at = self._text(at)
        elif first in (b"{", b"["):
            if depth > MAX_DEPTH:
                raise JsonError(f"[request] the body nests lists and objects deeper than {MAX_DEPTH}; expected less.")
            value, at = self._object(at + 1, depth) if first == b"{" else self._list(at + 1, depth)
        else:
            value, at = self._scalar(at)
        return value, self.skip(at)

    def _count(self, values: int = 0, fields: int = 0) -> None:
        before, self._num_values = self._num_values, self._num_values + values
        self._num_fields += fields
        if self._num_values > MAX_VALUES or self._num_fields > MAX_FIELDS:
            raise JsonError(
                f"[request] the body has too many parts; expected at most {MAX_VALUES} values and {MAX_FIELDS} fields "
                "and lists. Send several requests."
            )
        if before // 1024 != self._num_values // 1024 and not self._is_wanted():
            raise JsonError("[request] the client has left.")

    def _object(self, at: int, depth: int) -> tuple[JsonObject, int]:
        result: JsonObject = {}
        at = self.skip(at)
        if self._data[at : at + 1] == b"}":
            self._count(fields=1)
            return result, at + 1
        while True:
            self._count(fields=1)
            if self._data[at : at + 1] != b'"':
                raise _no_json(self._data, at)
            name, at = self._text(at)
            at = self.skip(at)
            if self._data[at : at + 1] != b":":
                raise _no_json(self._data, at)
            result[name], at = self.value(self.skip(at + 1), depth + 1)
            mark = self._data[at : at + 1]
            if mark == b"}":
                return result, at + 1
            if mark != b",":
                raise _no_json(self._data, at)
            at = self.skip(at + 1)

    def _list(self, at: int, depth: int) -> tuple[list[Json], int]:
        result: list[Json] = []
        self._count(fields=1)
        at = self.skip(at)
        if self._data[at : at + 1] == b"]":
            return result, at + 1
        while True:
            if numbers := _NUMBERS.match(self._data, at):  # what token ids are
                run = self._parse(b"[" + numbers[0].rstrip()[:-1] + b"]", at)
                self._count(values=len(run))
                result += run
                at = numbers.end()
            value, at = self.value(self.skip(at), depth + 1)
            result.append(value)
            mark = self._data[at : at + 1]
            if mark == b"]":
                return result, at + 1
            if mark != b",":
                raise _no_json(self._data, at)
            at = self.skip(at + 1)

    def _scalar(self, at: int) -> tuple[Json, int]:
        found = _SCALAR.match(self._data, at)
        if found is None:
            raise _no_json(self._data, at)
        return self._parse(found[0], at), found.end()

    def _text(self, at: int) -> tuple[str, int]:
        """Returns the text whose first quote is at index `at`, and the index behind its last quote."""
        place, step = at + 1, 256
        while True:
            part = self._data[place : place + step]
            # An escaped quote ends nothing; what takes its place is as long as it.
            masked = part.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            found = masked.find(b'"')
            if found >= 0:
                end = place + found + 1
                return self._parse(self._data[at:end], at), end
            if len(part) < step:
                raise _no_json(self._data, len(self._data))
            place += len(part) - masked.endswith(b"\\")
            step = _STEP
            if place - at > MAX_TEXT_BYTES:
                raise JsonError(
                    f"[request] a text in the body is too long; expected at most {MAX_TEXT_BYTES} bytes. Shorten it."
                )
            if not self._is_wanted():
                raise JsonError("[request] the client has left.")

    def _parse(self, part: bytes | bytearray, at: int) -> Json:
        try:
            return orjson.loads(part)
        except orjson.JSONDecodeError as error:
            raise _no_json(self._data, at + error.pos) from None


def _no_json(data: bytes | bytearray, at: int) -> JsonError:
    if not data:
        return JsonError("[request] the body is empty; expected a JSON object.")
    line = data.count(b"\n", 0, at) + 1
    column = at - data.rfind(b"\n", 0, at)
    return JsonError(f"[request] the body is no JSON in UTF-8 at line {line}, column {column}; expected a JSON object.")
