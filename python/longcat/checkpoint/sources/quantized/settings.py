"""Reads the fields of quantization_config, and the patterns of module names in it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence

from longcat._core import Error
from longcat.support.json_types import Json, JsonObject

_MAX_PATTERN = 500  # characters
_MAX_REPEATS = 6  # in one pattern; with more, Python's matcher can take minutes for a name of 80 characters
_MAX_SECONDS = 20.0  # for all patterns and all names
_MAX_SIDE = 4096  # of a block
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")


class Settings:
    """The fields of one JSON object. A wrong field is an Error with its name, what was found and what is expected."""

    def __init__(self, fields: Json, where: str):
        self.where = where
        if not isinstance(fields, dict):
            raise Error(f"[convert] {where} is {_show(fields)}; expected an object")
        self.fields: JsonObject = fields

    def refuse(self, name: str, expected: str) -> Error:
        found = f"is {_show(self.fields[name])}" if name in self.fields else "is missing"
        return Error(f"[convert] {self.where}.{name} {found}; expected {expected}")

    def get(self, name: str) -> Json:
        return self.fields.get(name)

    def text(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        value = self.fields.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(name, " or ".join(f'"{choice}"' for choice in choices))
        return value

    def integer(self, name: str, choices: Sequence[int], default: int | None = None) -> int:
        value = self.fields.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value not in choices:
            raise self.refuse(name, " or ".join(map(str, choices)))
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.fields.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(name, "a list of module names")
        return [item for item in value if isinstance(item, str)]

    def block(self, name: str) -> tuple[int, int]:
        """Rows and columns of a block."""
        value = self.fields.get(name)
        sides = [side for side in value if type(side) is int and 0 < side <= _MAX_SIDE] if type(value) is list else []
        if not isinstance(value, list) or len(value) != 2 or len(sides) != 2:
            raise self.refuse(name, "two sizes such as [128, 128]")
        return sides[0], sides[1]

    def inner(self, name: str) -> Settings:
        return Settings(self.fields.get(name), f"{self.where}.{name}")


def _show(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Patterns:
    """Regular expressions of module names, from an untrusted configuration.

    Python's matcher takes exponential time for some expressions. Those are refused: repeated groups, many repeats.
    """

    def __init__(self) -> None:
        self._compiled: dict[str, re.Pattern[str]] = {}
        self._left = _MAX_SECONDS

    def search(self, pattern: str, name: str, where: str) -> bool:
        """Whether the pattern matches anywhere in the name."""
        return self._find(pattern, name, where, whole=False)

    def match(self, pattern: str, name: str, where: str) -> bool:
        """Whether the pattern matches at the beginning of the name."""
        return self._find(pattern, name, where, whole=True)

    def _find(self, pattern: str, name: str, where: str, whole: bool) -> bool:
        compiled = self._compiled.get(pattern)
        if compiled is None:
            compiled = self._compiled[pattern] = _compile(pattern, where)
        start = time.monotonic()
        found = (compiled.match if whole else compiled.search)(name) is not None
        self._left -= time.monotonic() - start
        if self._left < 0:
            raise Error(f"[convert] {where}: its patterns take more than {_MAX_SECONDS:.0f} s; expected simpler ones")
        return found


def _compile(pattern: str, where: str) -> re.Pattern[str]:
    plain = re.sub(r"\\.|\[[^\]]*\]", "x", pattern)
    if len(pattern) > _MAX_PATTERN or len(_REPEAT.findall(plain)) > _MAX_REPEATS or _REPEATED_GROUP.search(plain):
        raise Error(
            f"[convert] {where} has the pattern {_show(pattern)}; expected at most {_MAX_REPEATS} repeats and no "
            "repeated group"
        )
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise Error(f"[convert] {where} has the pattern {_show(pattern)}; expected a valid one: {error}") from None


def first_match(names: Iterable[str], module: str) -> str | None:
    """The first of the names that is the module or a folder above it, as lists of ignored modules mean them."""
    return next((name for name in names if module == name or module.startswith(name + ".")), None)
