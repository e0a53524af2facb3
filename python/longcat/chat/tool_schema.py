"""Reads the schemas of the declared tools, for every part of the code that handles calls.

The grammar of forced calls, the typing of arguments and the check of a finished call use it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from longcat.chat.tool_text import NOT_JSON, js_value, json_value
from longcat.request.schema.branches import ANYTHING, Node, Object, Plain, Text
from longcat.request.schema.reader import SchemaReader
from longcat.support.json_types import Json


class Kind(Enum):
    """The way in which an argument's text is read."""

    TEXT = "text"  # it is the value, whatever it says
    TEXT_OR_NULL = "text or null"  # but for the text "null"
    OTHER = "other"


@dataclass(frozen=True)
class Argument:
    """The values that one argument may have."""

    nodes: tuple[Node, ...]  # one of them holds
    texts: tuple[Text, ...]
    kind: Kind
    takes_null: bool


class ToolSchema:
    """The schema of one tool's arguments.

    Args:
        name: the tool's name.
        parameters: the tool's schema; anything but an object allows all arguments.
    """

    def __init__(self, name: str, parameters: object):
        self.name = name
        self.parameters: Mapping[str, Json] = parameters if isinstance(parameters, Mapping) else {}
        self._arguments: dict[str, Argument | None] = {}

    def strict(self) -> SchemaReader:
        """Returns a reader that refuses schemas that cannot be enforced."""
        return SchemaReader(self.parameters, f'tool "{self.name[:64]}"')

    @functools.cached_property
    def _reader(self) -> SchemaReader:
        return SchemaReader(self.parameters, lenient=True)

    @functools.cached_property
    def _objects(self) -> tuple[Object, ...]:
        return tuple(self._reader.objects(self._reader.root))

    def key(self, text: str) -> str:
        """Returns an argument's name: as written if it is declared so, otherwise without white space around it."""
        declared = any(text in one.properties for one in self._objects)
        return text if declared else text.strip()

    def argument(self, key: str) -> Argument | None:
        """Returns the schema of an argument; None when the schema does not mention it."""
        if key not in self._arguments:
            self._arguments[key] = self._read_argument(key)
        return self._arguments[key]

    def _read_argument(self, key: str) -> Argument | None:
        found = [self._reader.property_of(one, key) for one in self._objects]
        nodes = tuple(dict.fromkeys(node for node in found if node is not None))
        if not nodes or ANYTHING in nodes:
            return None
        branches = [branch for node in nodes for branch in self._reader.branches(node)]
        texts = tuple(branch for branch in branches if isinstance(branch, Text))
        null = Plain("null")
        kind = Kind.OTHER
        if texts and all(text.choices is None for text in texts):
            if all(isinstance(branch, Text) for branch in branches):
                kind = Kind.TEXT
            elif all(isinstance(branch, Text) or branch == null for branch in branches):
                kind = Kind.TEXT_OR_NULL
        takes_null = any(self._reader.allows(node, None) for node in nodes)
        return Argument(nodes, texts, kind, takes_null)

    def value(self, key: str, text: str) -> Json:
        """Returns an argument's value: the text as written if the schema allows that text, otherwise its JSON value.

        "null" is None where the schema takes both. A text that fits nothing stays what it is in JSON, or text.
        """
        argument = self.argument(key)
        if argument is None:
            value = json_value(text.strip())
            return text if value is NOT_JSON else value
        if argument.kind is Kind.TEXT:
            return text
        listed = any(text in (one.choices or ()) for one in argument.texts)
        if text == "null" and argument.takes_null and not listed:
            return None
        if argument.kind is Kind.TEXT_OR_NULL or listed or any(one.allows(text) for one in argument.texts):
            return text
        stripped = text.strip()
        value = json_value(stripped)
        for candidate in (value, stripped, js_value(stripped) if value is NOT_JSON else NOT_JSON):
            if candidate is not NOT_JSON and any(self._reader.allows(node, candidate) for node in argument.nodes):
                return candidate
        return text if value is NOT_JSON or argument.texts else value

    def is_complete(self, keys: Iterable[str], for_good: bool = False) -> bool:
        """Returns whether these arguments include all required ones.

        Args:
            for_good: the answer must hold whatever arguments follow.
        """
        given = set(keys)
        if not self._objects:
            return True
        for one in self._objects:
            forbidden = {name for name, node in one.properties.items() if node is None}
            if (
                given.issuperset(one.required)
                and len(given) >= one.least
                and not (forbidden if for_good else forbidden & given)
            ):
                return True
        return False


class ToolSchemas:
    """The declared tools, by name. Malformed tools count as not declared."""

    def __init__(self, tools: Sequence[Mapping[str, object]] | None):
        self._tools: dict[str, ToolSchema] = {}
        for tool in tools or ():
            function = tool.get("function") if isinstance(tool, Mapping) else None
            function = function if isinstance(function, Mapping) else tool
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                self._tools[function["name"]] = ToolSchema(function["name"], function.get("parameters"))

    def __contains__(self, name: str) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> ToolSchema:
        return self._tools.get(name) or ToolSchema(name, {})

    def may_be_name(self, name: str) -> bool:
        """Returns whether the name can be that of a call: it is declared, or a single word."""
        return bool(name) and (name in self._tools or not any(char.isspace() for char in name))

    def name(self, text: str) -> str:
        """Returns a tool's name as declared: without white space around it, and without `functions.`."""
        if text in self._tools:
            return text
        name = text.strip()
        return name if name in self._tools else name.removeprefix("functions.").strip()
