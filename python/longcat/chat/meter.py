"""Measures time and memory of the rendering of a chat template, and stops it at its limits."""

from __future__ import annotations

import time
from typing import Any

from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.runtime import Undefined

MAX_RENDER_SECONDS = 1.0  # of the thread's own CPU time: a busy machine fails no prompt
_MAX_VALUE = 1 << 21  # characters and elements of one value, nested ones counted each time they occur
_MAX_TOTAL = 1 << 26  # characters of all values made in one render, an element of a list counting as eight
_MAX_NESTING = 128  # of lists and objects
MAX_INT_BITS = 4096
LEAVES = (int, float, type(None), Undefined)
CONTAINERS = (list, tuple, dict, range)


class LimitError(TemplateRuntimeError):
    """The template takes more time, text or depth than a prompt can need."""


class Meter:
    """The time and memory that one rendering has used so far."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + MAX_RENDER_SECONDS
        self._total = 0
        # Size and depth of lists and objects by id. They never change, and being kept here they keep their ids.
        self._known: dict[int, tuple[Any, int, int]] = {}

    def tick(self) -> None:
        """One step.

        Raises:
            LimitError: the time is up.
        """
        if time.thread_time() > self._deadline:
            raise LimitError(f"rendering takes longer than {MAX_RENDER_SECONDS:g} s")

    def room(self, size: int) -> None:
        """Checks before a value is made that one of `size` may be.

        Raises:
            LimitError: it would be too large.
        """
        if size > _MAX_VALUE:
            raise LimitError(f"a value of more than {_MAX_VALUE} characters or elements")

    def charge(self, value: object) -> None:
        """Counts the memory of a value that was made, without those in it.

        Raises:
            LimitError: all that were made are too much.
        """
        self._total += len(value) if isinstance(value, str) else 8 * len(value) if isinstance(value, CONTAINERS) else 1
        if self._total > _MAX_TOTAL:
            raise LimitError(f"values of more than {_MAX_TOTAL} characters in all")

    def take(self, value: object) -> Any:
        """Checks a new value, counts its memory, and returns it."""
        self.size(value)
        self.charge(value)
        return value

    def size(self, value: object) -> int:
        """Characters and elements of `value`, as many as its text would show.

        Raises:
            SecurityError: it is not made of JSON's types.
            LimitError: it is too large, or too deep.
        """
        return self._size_and_depth(value)[0]

    def _size_and_depth(self, value: object) -> tuple[int, int]:
        if isinstance(value, str):
            self.room(len(value))
            return len(value) + 1, 0
        if isinstance(value, LEAVES):
            if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
                raise LimitError(f"a number of more than {MAX_INT_BITS} bits")
            return 1, 0
        if isinstance(value, range):
            return len(value) + 1, 1
        if not isinstance(value, CONTAINERS):
            raise SecurityError(f"a {type(value).__name__} cannot be used as a value")
        known = self._known.get(id(value))
        if known is None:
            known = self._known[id(value)] = (value, *self._measure(value))
        return known[1:]

    def _measure(self, container: Any) -> tuple[int, int]:
        size, depth = 1, 0
        items = (part for item in container.items() for part in item) if isinstance(container, dict) else container
        for index, item in enumerate(items):
            if index % 4096 == 4095:
                self.tick()
            item_size, item_depth = self._size_and_depth(item)
            size, depth = size + item_size, max(depth, item_depth)
        self.room(size)
        if depth >= _MAX_NESTING:
            raise LimitError(f"lists nested more than {_MAX_NESTING} deep")
        return size, depth + 1
