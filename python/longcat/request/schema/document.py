"""One schema document: its schemas by number, its references, and the limit of the work on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote

from longcat.request.schema.branches import Node
from longcat.support.json_types import Json

_MAX_STEPS = 20_000  # of a whole document
_REMEDY = "docs/serving.md has the table of keywords"
_MISSING = object()


class SchemaError(ValueError):
    """The schema is malformed, or has a word that restricts values and cannot be enforced. The message names it."""


class SchemaDocument:
    """Numbers the schemas of one document, resolves references and reports faults.

    Args:
        document: the schema.
        name: name of the document in messages.
        lenient: ignore words that cannot be enforced, and let malformed parts allow any value.
    """

    def __init__(self, document: object, name: str, lenient: bool):
        self._document = document
        self._name = name
        self.lenient = lenient
        self.schemas: list[Json] = []  # by number
        self.paths: list[str] = []  # of the schemas
        self._numbers: dict[int, int] = {}  # by the identity of the schema, which `schemas` keeps alive
        self._made: dict[tuple[Json, ...], int] = {}  # schemas that the document does not have as such
        self._checked: set[int] = set()
        self._num_steps = 0

    def may_go_on(self, steps: int = 1) -> bool:
        """Counts work; returns whether the schema is still within the limit."""
        self._num_steps += steps
        return self._num_steps <= _MAX_STEPS

    def check(self, number: int) -> None:
        """Raises SchemaError for words that restrict values of any type and that this package does not read."""
        if number in self._checked:
            return
        self._checked.add(number)
        schema, path = self.schemas[number], self.paths[number]
        if "not" in schema and schema["not"] is not False:
            self.refuse("not", path, "what is allowed, in place of what is not")
        if "if" in schema and any(schema.get(word, True) not in (True, {}) for word in ("then", "else")):
            self.refuse("if", path, "anyOf")
        for word in ("$dynamicRef", "$recursiveRef"):
            if word in schema:
                self.refuse(word, path, "$ref")

    def resolve(self, reference: object, path: str) -> int:
        """Returns the number of the schema that a $ref at `path` names."""
        if not isinstance(reference, str):
            self.malformed("$ref", path, "a text such as #/$defs/name", reference)
            return self.number_of(True, path)
        base, _, fragment = reference.partition("#")
        root_id = self._document.get("$id", self._document.get("id")) if isinstance(self._document, dict) else None
        found: Json = self._document
        if base and (not isinstance(root_id, str) or base != root_id.rstrip("#")):
            self.refuse("$ref", path, "a reference into the same schema", reference)
            return self.number_of(True, path)
        if fragment and not fragment.startswith("/"):
            found = _anchored(self._document, fragment)
        else:
            for step in fragment.split("/")[1:]:
                name = unquote(step).replace("~1", "/").replace("~0", "~")
                if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                    found = found[int(name)]
                else:
                    found = found.get(name, _MISSING) if isinstance(found, dict) else _MISSING
        if not isinstance(found, (dict, bool)):
            if not self.lenient:
                self.fail(
                    f'"$ref" at {path or "/"} to {short(reference)}, where there is no schema',
                    "#/$defs/name or the like",
                    "Add it",
                )
            return self.number_of(True, path)
        return self.number_of(found, f"{reference.removeprefix('#')}")

    def node(self, schemas: Sequence[tuple[object, str]]) -> Node | None:
        """Makes a node of schemas, given with their paths; None if one schema is false."""
        numbers = []
        for schema, path in schemas:
            if schema is False:
                return None
            if schema is not True and schema != {}:
                number = self.number_of(schema, path)
                if self.schemas[number] is not True:
                    numbers.append(number)
        return frozenset(numbers)

    def number_of(self, schema: object, path: str) -> int:
        """Returns the number of a schema, a new one at its first use."""
        if not isinstance(schema, (dict, bool)):
            self.malformed("schema", path, "an object, true or false", schema)
            schema = True
        if isinstance(schema, bool):
            return self.make(("bool", schema), schema, path)
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = self._append(schema, path)
        return self._numbers[id(schema)]

    def make(self, key: tuple[object, ...], schema: object, path: str) -> int:
        """Returns the number of a schema that the document does not have as such; `key` stands for its content."""
        if key not in self._made:
            self._made[key] = self._append(schema, path)
        return self._made[key]

    def _append(self, schema: object, path: str) -> int:
        self.schemas.append(schema)
        self.paths.append(path)
        return len(self.schemas) - 1

    def list_of(self, schema: dict[str, object], word: str, path: str) -> list[Json]:
        """Returns the list that a word of the schema must have."""
        value = schema.get(word, [])
        if not isinstance(value, list):
            self.malformed(word, path, "a list", value)
            return []
        return value

    def refuse(self, word: str, path: str, expected: str, found: object = None) -> None:
        """Reports a word that restricts values and cannot be enforced."""
        shown = "" if found is None else f" of {short(found)}"
        self.fail(f'"{word}"{shown} at {path or "/"}, which cannot be enforced', expected, f"Leave it out; {_REMEDY}")

    def malformed(self, word: str, path: str, expected: str, found: object = None) -> None:
        """Reports a word with a value that the standard forbids."""
        self.fail(f'"{word}" of {short(found)} at {path or "/"}', expected, "Correct it")

    def fail(self, found: str, expected: str, remedy: str) -> None:
        """Raises SchemaError, unless the document is read leniently."""
        if not self.lenient:
            raise SchemaError(f"[{self._name}] found {found}; expected {expected}. {remedy}.")


def _anchored(schema: object, anchor: str, depth: int = 64) -> Json:
    """The schema with this $anchor."""
    if isinstance(schema, dict) and (schema.get("$anchor") == anchor or schema.get("$id") == f"#{anchor}"):
        return schema
    items = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if depth:
        for item in items:
            found = _anchored(item, anchor, depth - 1)
            if found is not _MISSING:
                return found
    return _MISSING


def short(value: object) -> str:
    """Returns the JSON of a value, cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
