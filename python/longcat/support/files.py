"""Reads small files from users and downloads: config, tokenizer, template, tools, calibration text."""

from __future__ import annotations

import io
import json
import os
import stat

from longcat._core import Error
from longcat.support.json_types import Json, JsonObject
from longcat.support.text import bytes_text

MAX_BYTES = 64 << 20


def open_regular(path: str | os.PathLike[str], area: str) -> io.FileIO:
    """Opens a regular file, or the target of a link, for reading bytes.

    A pipe, a device or a socket is refused without waiting for it.

    Args:
        area: opens the message, such as "[config]".
    Raises:
        longcat.Error: the file is missing, is not a regular file, or cannot be opened.
    """
    name = os.fspath(path)
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise Error(f"{area} {name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Error(f"{area} {name} is {_kind(mode)}; expected a regular file")
    return io.FileIO(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str], area: str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a small regular file.

    Raises:
        longcat.Error: as `open_regular`, or the file has more than `max_bytes`.
    """
    name = os.fspath(path)
    with open_regular(path, area) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            parts: list[bytes] = []
            room = max_bytes + 1  # one byte over the limit, because the file may grow during the read
            while size <= max_bytes and room > 0 and (part := file.read(min(room, 1 << 20))):
                parts.append(part)
                room -= len(part)
        except OSError as error:
            raise Error(f"{area} {name} cannot be read: {error.strerror or error}") from None
    if size > max_bytes or room <= 0:
        raise Error(f"{area} {name} has more than {bytes_text(max_bytes)}; expected a smaller file")
    return b"".join(parts)


def read_text(path: str | os.PathLike[str], area: str, max_bytes: int = MAX_BYTES) -> str:
    """`read_bytes` as UTF-8, with "\\n" as line end.

    Raises:
        longcat.Error: as `read_bytes`, or the file is not UTF-8.
    """
    try:
        text = read_bytes(path, area, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Error(f"{area} {os.fspath(path)} cannot be read: {error}; expected text in UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], area: str, max_bytes: int = MAX_BYTES) -> Json:
    """The JSON value of a small file.

    Raises:
        longcat.Error: as `read_bytes`, or the file is not JSON.
    """
    raw = read_bytes(path, area, max_bytes)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Error(f"{area} {os.fspath(path)} is not valid: {error}; expected JSON") from None


def read_json_object(path: str | os.PathLike[str], area: str, max_bytes: int = MAX_BYTES) -> JsonObject:
    """The JSON object of a small file, or {} when the file is missing.

    Raises:
        longcat.Error: as `read_json`, or the value is not an object.
    """
    if not os.path.exists(path):
        return {}
    value = read_json(path, area, max_bytes)
    if not isinstance(value, dict):
        raise Error(f"{area} {os.fspath(path)} is not valid: not an object; expected a JSON object")
    return value


def _kind(mode: int) -> str:
    for test, kind in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return kind
    return "no regular file"
