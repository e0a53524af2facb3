"""Parses the JSON of clients, with limits on the number of its parts, their depth and the length of a text."""

from __future__ import annotations

from itertools import accumulate

import orjson

from longcat.support.json_types import Json

MAX_TEXT_BYTES = 4 << 20  # of one text as it is written
MAX_VALUES = 1 << 19  # texts, numbers, lists and objects in a body
MAX_FIELDS = 1 << 16  # lists, empty objects, and fields of objects
MAX_DEPTH = 128
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class JsonError(ValueError):
    """The bytes are no JSON, or beyond a limit."""


def parse(data: bytes | bytearray) -> Json:
    """Returns the value of a JSON text.

    Raises:
        JsonError: `data` is no JSON.
        MemoryError: memory is short for the value.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "memory" in error.msg:
            raise MemoryError from None
        raise _no_json(data, len(error.doc[: error.pos].encode(errors="replace"))) from None


def check_parts(data: bytes | bytearray) -> None:
    """Checks a long text before it is parsed, at the speed of C: its values may take far more memory than its bytes.

    Raises:
        JsonError: it is beyond a limit above. Text that is no JSON may pass.
    """
    # An escaped quote ends nothing; what takes its place is as long as it.
    plain = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    if plain.count(b'"') > 2 * (MAX_VALUES + MAX_FIELDS):
        raise _too_many()
    parts = plain.split(b'"')
    if max(map(len, parts[1::2]), default=0) > MAX_TEXT_BYTES:
        raise JsonError(
            f"[request] a text in the body is too long; expected at most {MAX_TEXT_BYTES} bytes. Shorten it."
        )
    marks = b'"'.join(parts[::2]).translate(None, b" \t\n\r")
    num_lists, num_objects = marks.count(b"["), marks.count(b"{")
    num_empty = marks.count(b"[]"), marks.count(b"{}")
    num_fields = marks.count(b":") + num_lists + num_empty[1]
    num_values = 1 + marks.count(b",") + num_lists + num_objects - sum(num_empty)  # each but one is in another
    if num_values > MAX_VALUES or num_fields > MAX_FIELDS or num_objects > MAX_FIELDS:
        raise _too_many()
    brackets = marks.translate(None, _NO_BRACKETS)
    if max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MAX_DEPTH:
        raise JsonError(f"[request] the body nests lists and objects deeper than {MAX_DEPTH}; expected less.")


def _too_many() -> JsonError:
    return JsonError(
        f"[request] the body has too many parts; expected at most {MAX_VALUES} values and {MAX_FIELDS} fields "
        "and lists. Send several requests."
    )


def _no_json(data: bytes | bytearray, at: int) -> JsonError:
    if not data:
        return JsonError("[request] the body is empty; expected a JSON object.")
    line = data.count(b"\n", 0, at) + 1
    column = at - data.rfind(b"\n", 0, at)
    return JsonError(f"[request] the body is no JSON in UTF-8 at line {line}, column {column}; expected a JSON object.")
