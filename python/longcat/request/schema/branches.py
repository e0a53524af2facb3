"""Branches: the values of one type that a schema allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from longcat.request.patterns import matches
from longcat.support.json_types import Json

Node: TypeAlias = "frozenset[int]"  # numbers of schemas that all hold; empty: any value
ANYTHING: Node = frozenset()


@dataclass(frozen=True)
class Text:
    """Texts within bounds of length that match all patterns; or the texts in `choices`."""

    least: int = 0
    most: int | None = None
    patterns: tuple[str, ...] = ()
    choices: tuple[str, ...] | None = None

    def allows(self, value: object) -> bool:
        if not isinstance(value, str) or (self.choices is not None and value not in self.choices):
            return False
        fits = self.least <= len(value) and (self.most is None or len(value) <= self.most)
        return fits and all(matches(pattern, value) for pattern in self.patterns)

    def is_free(self) -> bool:
        return self == Text()


@dataclass(frozen=True)
class Number:
    """Numbers within bounds. A bound is (value, whether the value itself is excluded)."""

    is_integer: bool = False
    low: tuple[float, bool] | None = None
    high: tuple[float, bool] | None = None
    multiple_of: float | None = None

    def allows(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        if self.low is not None and (value < self.low[0] or (self.low[1] and value == self.low[0])):
            return False
        if self.high is not None and (value > self.high[0] or (self.high[1] and value == self.high[0])):
            return False
        if self.multiple_of is not None and Fraction(value) % Fraction(self.multiple_of):
            return False
        return not self.is_integer or value == int(value)


@dataclass(frozen=True, eq=False)
class Constant:
    """One constant value other than a text."""

    value: Json

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and same(self.value, other.value)  # Python's 1 == True is no match


@dataclass(frozen=True)
class Plain:
    """All values of the type "null" or "boolean"."""

    kind: str


@dataclass(frozen=True)
class Array:
    """Lists: schemas of the first items, then one for all other items. None forbids an item."""

    first: tuple[Node, ...]
    others: Node | None
    least: int
    most: int | None


@dataclass(frozen=True)
class Object:
    """Objects: schemas of properties by name (None: forbidden), by pattern, and for all other names.

    `is_open`: other properties may have any value. The written schema leaves them out, because objects without them
    fit.
    """

    properties: Mapping[str, Node | None]
    required: tuple[str, ...]
    by_pattern: tuple[tuple[str, Node], ...]
    others: Node | None
    least: int
    most: int | None
    is_open: bool = False
    is_counted: bool = False  # made for a number of properties: other combinations of that number fit as well


Branch: TypeAlias = "Text | Number | Constant | Plain | Array | Object"


def kind_of(value: object) -> str:
    """Returns the type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (str, list, dict)):
        return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return "number"


def same(a: Json, b: Json) -> bool:
    """Returns whether two values are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if kind_of(a) != kind_of(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return bool(a == b)
