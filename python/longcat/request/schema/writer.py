"""Writes the nodes of a schema as a JSON schema that llguidance enforces."""

from __future__ import annotations

from collections.abc import Sequence

from longcat.request.schema.branches import (
    ANYTHING,
    Array,
    Branch,
    Constant,
    Node,
    Number,
    Object,
    Plain,
    Text,
)
from longcat.request.schema.reader import SchemaReader
from longcat.support.json_types import Json, JsonObject


class SchemaWriter:
    """Writes nodes in the words that llguidance enforces.

    Args:
        text_pattern: a pattern that all texts within values must match, beside their own patterns.
        plain_numbers: write numbers without exponents, because a number with one may be too large to read.
    """

    def __init__(self, reader: SchemaReader, text_pattern: str | None = None, plain_numbers: bool = False):
        self._reader = reader
        self._text_pattern = text_pattern
        self._plain_numbers = plain_numbers
        self._names: dict[Node, str] = {}
        self._definitions: JsonObject = {}

    def document(self, branches: Sequence[Branch]) -> JsonObject:
        """Returns a complete schema of the values that one branch allows."""
        self._names, self._definitions = {}, {}
        written = self._any_of(branches)
        written = written if isinstance(written, dict) else {"not": {}}
        return {**written, "$defs": self._definitions} if self._definitions else written

    def _node(self, node: Node | None) -> Json:
        if node is None:
            return False
        if node == ANYTHING and self._text_pattern is None and not self._plain_numbers:
            return {}
        branches = self._reader.branches(node)
        if all(isinstance(branch, (Text, Number, Constant, Plain)) for branch in branches):
            return self._any_of(branches)
        if node not in self._names:
            name = self._names[node] = f"v{len(self._names)}"
            self._definitions[name] = None  # in their order
            self._definitions[name] = self._any_of(branches)
        return {"$ref": f"#/$defs/{self._names[node]}"}

    def _any_of(self, branches: Sequence[Branch]) -> Json:
        values = [branch.value for branch in branches if isinstance(branch, Constant)]
        written = [self._branch(branch) for branch in branches if not isinstance(branch, Constant)]
        written += [{"enum": values}] if values else []
        if not written:
            return False
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _branch(self, branch: Branch) -> JsonObject:
        if isinstance(branch, Text):
            return self._text(branch)
        if isinstance(branch, Number):
            return self._number(branch)
        if isinstance(branch, Plain):
            return {"type": branch.kind}
        if isinstance(branch, Array):
            written = {"type": "array", "items": self._node(branch.others)}
            if branch.first:
                written["prefixItems"] = [self._node(node) for node in branch.first]
            if written["items"] == {}:
                del written["items"]
            return written | _counts(branch.least, branch.most, "Items")
        assert isinstance(branch, Object)
        written = {"type": "object", "properties": {}}
        is_closed = branch.others is None and not branch.by_pattern
        for name, node in branch.properties.items():
            if node is not None or not is_closed:
                written["properties"][name] = self._node(node)
        if branch.required:
            written["required"] = list(branch.required)
        others = self._node(branch.others)
        if branch.by_pattern:
            written["patternProperties"] = {f"^{pattern}$": self._node(node) for pattern, node in branch.by_pattern}
        elif others is not False and self._text_pattern is not None:
            written["patternProperties"] = {f"^{self._text_pattern}$": others}
            others = False
        if others != {}:
            written["additionalProperties"] = others
        return written | _counts(branch.least, branch.most, "Properties")

    def _text(self, branch: Text) -> JsonObject:
        if branch.choices is not None:
            return {"type": "string", "enum": list(branch.choices)}
        patterns = [*branch.patterns, *([self._text_pattern] if self._text_pattern is not None else [])]
        written: JsonObject = {"type": "string"} | _counts(branch.least, branch.most, "Length")
        if patterns:
            written["pattern"] = f"^{patterns[0]}$"
            if len(patterns) > 1:
                written["allOf"] = [{"pattern": f"^{pattern}$"} for pattern in patterns[1:]]
        return written

    def _number(self, branch: Number) -> JsonObject:
        written: JsonObject = {"type": "integer" if branch.is_integer else "number"}
        if branch.low is not None:
            written["exclusiveMinimum" if branch.low[1] else "minimum"] = branch.low[0]
        if branch.high is not None:
            written["exclusiveMaximum" if branch.high[1] else "maximum"] = branch.high[0]
        if branch.multiple_of is not None:
            written["multipleOf"] = branch.multiple_of
        elif self._plain_numbers and written == {"type": "number"}:
            written["minimum"] = -(10**15)
        return written


def _counts(least: int, most: int | None, what: str) -> JsonObject:
    return ({f"min{what}": least} if least else {}) | ({} if most is None else {f"max{what}": most})
