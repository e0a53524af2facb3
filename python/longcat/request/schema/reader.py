"""Reads JSON schemas into nodes: branches of one type each, which can be enforced, checked and written again.

`SchemaReader` resolves references and combines `allOf`, `anyOf`, `oneOf`, `enum` and other words. Its users see plain
branches only. They are the grammar of a completion, the grammar of a forced call, and the typing of a call's arguments.
Annotations, unknown words and words of other types restrict nothing and are dropped. A word that restricts and cannot
be enforced is refused by name.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator

from longcat.request.patterns import matches
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
    kind_of,
    same,
)
from longcat.request.schema.document import SchemaDocument
from longcat.request.schema.keywords import array_branch, number_branch, object_branches, text_branch
from longcat.support.json_types import Json, JsonObject

_TYPES = ("null", "boolean", "number", "string", "array", "object")
_MAX_ALTERNATIVES = 512  # of one node
_MAX_NODES = 4096
_MAX_PROOF_DEPTH = 3
_KEYWORDS = frozenset(
    "type enum const allOf anyOf oneOf not if then else $ref $dynamicRef $recursiveRef properties required "
    "patternProperties additionalProperties unevaluatedProperties propertyNames minProperties maxProperties "
    "dependentRequired dependentSchemas dependencies items prefixItems additionalItems unevaluatedItems contains "
    "minContains maxContains uniqueItems minItems maxItems minLength maxLength pattern format minimum maximum "
    "exclusiveMinimum exclusiveMaximum multipleOf".split()
)


class SchemaReader:
    """Reads one schema document.

    Args:
        document: the schema.
        name: name of the document in messages.
        lenient: ignore words that cannot be enforced, and let malformed parts allow any value.
    """

    def __init__(self, document: object, name: str = "schema", lenient: bool = False):
        self._document = SchemaDocument(document, name, lenient)
        self._branches: dict[Node, tuple[Branch, ...]] = {}
        self._exclusive_groups: set[tuple[int, ...]] = set()
        self._in_proof: set[tuple[int, ...]] = set()
        self.root: Node | None = self._document.node([(document, "")])

    # --- reading ---

    def branches(self, node: Node) -> tuple[Branch, ...]:
        """Returns the branches of `node`. A value fits if one branch allows it. Empty: no value fits.

        Raises:
            SchemaError: a word of the schema cannot be enforced, or is malformed.
        """
        if node not in self._branches:
            if len(self._branches) >= _MAX_NODES:
                self._document.fail(f"more than {_MAX_NODES} kinds of values", "a smaller schema", "Make it smaller")
            self._branches[node] = tuple(self._read(node))
        return self._branches[node]

    def allows(self, node: Node | None, value: object) -> bool:
        """Returns whether a value fits `node`."""
        return node is not None and any(self._branch_allows(branch, value) for branch in self.branches(node))

    def _branch_allows(self, branch: Branch, value: object) -> bool:
        if isinstance(branch, (Text, Number)):
            return branch.allows(value)
        if isinstance(branch, Constant):
            return same(branch.value, value)
        if isinstance(branch, Plain):
            return value is None if branch.kind == "null" else isinstance(value, bool)
        if isinstance(branch, Array):
            if not isinstance(value, list) or not _within(len(value), branch.least, branch.most):
                return False
            nodes = itertools.chain(branch.first, itertools.repeat(branch.others))
            return all(self.allows(node, item) for node, item in zip(nodes, value, strict=False))
        if not isinstance(value, dict) or not _within(len(value), branch.least, branch.most):
            return False
        if not all(name in value for name in branch.required):
            return False
        return all(self.allows(self.property_of(branch, name), item) for name, item in value.items())

    def objects(self, node: Node | None) -> list[Object]:
        """Returns the branches of `node` that allow objects."""
        found: list[Object] = []
        for branch in () if node is None else self.branches(node):
            if isinstance(branch, Constant) and isinstance(branch.value, dict):
                nodes = {name: self._document.node([({"const": value}, "")]) for name, value in branch.value.items()}
                found.append(Object(nodes, tuple(nodes), (), None, 0, None))
            elif isinstance(branch, Object):
                found.append(branch)
        return found

    @staticmethod
    def property_of(branch: Object, name: str) -> Node | None:
        if name in branch.properties:
            return branch.properties[name]
        found = [node for pattern, node in branch.by_pattern if matches(pattern, name)]
        if found:
            return frozenset().union(*found)
        return ANYTHING if branch.is_open else branch.others

    def _read(self, node: Node, settled: frozenset[tuple[int, ...]] = frozenset()) -> list[Branch]:
        """Returns the branches of all combinations of alternatives. `node` has one of each group in `settled`."""
        found: list[Branch] = []
        waiting = [(node, settled)]
        while waiting:
            if len(found) > _MAX_ALTERNATIVES or not self._document.may_go_on():
                what = f"more than {_MAX_ALTERNATIVES} combinations of anyOf, oneOf and the like"
                self._document.fail(what, "fewer", "Leave some out")
                return found
            conjunction, settled = waiting.pop()
            closure, groups = self._closure(conjunction)
            if closure is None:
                continue
            open_groups = [group for group in groups if group not in settled]
            if not open_groups:
                found += [branch for branch in self._combined(closure) if branch not in found]
                continue
            group = open_groups[0]
            if group in self._exclusive_groups and group not in self._in_proof:
                found += [branch for branch in self._one_of(closure, settled, group) if branch not in found]
                continue
            for alternative in reversed(group):
                waiting.append((closure | {alternative}, settled | {group}))
        return found

    def _one_of(self, closure: Node, settled: frozenset[tuple[int, ...]], group: tuple[int, ...]) -> list[Branch]:
        """Returns the branches of a oneOf, after a check that no value fits two of its alternatives."""
        self._in_proof.add(group)
        found: list[Branch] = []
        for one in group:
            mine = self._read(closure | {one}, settled | {group})
            for other in group:
                theirs = self.branches(frozenset({other})) if other != one and self._document.may_go_on() else ()
                if not all(self._apart(a, b, _MAX_PROOF_DEPTH) for a in mine for b in theirs):
                    path = self._document.paths[one].rpartition("/")[0].removesuffix("/oneOf")
                    self._document.refuse(
                        "oneOf", path, "alternatives that differ in their type, or in a constant of a required property"
                    )
            found += mine
        self._in_proof.discard(group)
        return found

    def _closure(self, conjunction: Node) -> tuple[Node | None, list[tuple[int, ...]]]:
        """Returns the schemas that hold together (None: no value fits), and groups of which one schema must hold."""
        closure: set[int] = set()
        groups: list[tuple[int, ...]] = []
        todo = sorted(conjunction, reverse=True)
        while todo and self._document.may_go_on():
            number = todo.pop()
            schema = self._document.schemas[number]
            if schema is False:
                return None, []
            if number in closure or not isinstance(schema, dict):
                continue
            closure.add(number)
            self._document.check(number)
            path = self._document.paths[number]
            if "$ref" in schema and not (self._document.lenient and not isinstance(schema["$ref"], str)):
                todo.append(self._document.resolve(schema["$ref"], path))
            parts = self._document.list_of(schema, "allOf", path)
            todo += [self._document.number_of(one, f"{path}/allOf/{i}") for i, one in enumerate(parts)]
            for word in ("anyOf", "oneOf"):
                if word in schema:
                    parts = self._document.list_of(schema, word, path)
                    group = tuple(self._document.number_of(one, f"{path}/{word}/{i}") for i, one in enumerate(parts))
                    groups.append(self._exclusive(number, group) if word == "oneOf" else group)
            groups += self._dependents(number)
        return frozenset(closure), groups

    def _dependents(self, number: int) -> Iterator[tuple[int, ...]]:
        """Handles dependentRequired and dependentSchemas: either without the property, or with what it requires."""
        schema, path = self._document.schemas[number], self._document.paths[number]
        for word in ("dependentRequired", "dependentSchemas", "dependencies"):
            dependents = schema.get(word)
            if dependents is None:
                continue
            if not isinstance(dependents, dict):
                self._document.malformed(word, path, "an object")
                continue
            for name, needed in dependents.items():
                with_it: JsonObject = {"required": [name]}
                if isinstance(needed, list):
                    if not needed:
                        continue
                    with_it["required"] = [name, *needed]
                elif needed is True or needed == {}:
                    continue
                elif isinstance(needed, (dict, bool)):
                    with_it["allOf"] = [needed]
                here = f"{path}/{word}/{name}"
                yield (
                    self._document.make(("without", number, name), {"properties": {name: False}}, here),
                    self._document.make(("with", word, number, name), with_it, here),
                )

    def _exclusive(self, number: int, group: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the alternatives of a oneOf."""
        path = self._document.paths[number]
        alternatives = [self._document.schemas[one] for one in group]
        needs = [self._only_required(one) for one in alternatives]
        if all(needs) and len(needs) <= _MAX_ALTERNATIVES:  # "just one of these properties"
            made = []
            for i, names in enumerate(needs):
                others = [other for j, other in enumerate(needs) if j != i]
                if any(len(other or ()) != 1 for other in others):
                    break
                absent = {(other or [""])[0]: False for other in others}
                one = {"type": "object", "required": names, "properties": absent}
                made.append(self._document.make(("only", number, i), one, f"{path}/oneOf/{i}"))
            else:
                return tuple(made)
        if not self._document.lenient:
            self._exclusive_groups.add(group)
        return group

    @staticmethod
    def _only_required(schema: object) -> list[str] | None:
        if not isinstance(schema, dict) or not isinstance(schema.get("required"), list):
            return None
        restricting = [word for word in schema if word in _KEYWORDS and word != "required"]
        names = schema["required"]
        return names if not restricting and all(isinstance(name, str) for name in names) else None

    def _nodes_apart(self, a: Node, b: Node, depth: int) -> bool:
        return depth > 0 and all(self._apart(x, y, depth) for x in self.branches(a) for y in self.branches(b))

    def _apart(self, a: Branch, b: Branch, depth: int) -> bool:
        """Returns whether no value that the grammar writes for `a` fits `b`; False also where it cannot tell."""
        if isinstance(b, Object) and b.is_counted:
            return not (isinstance(a, Object) or (isinstance(a, Constant) and isinstance(a.value, dict)))
        for one, other in ((a, b), (b, a)):
            if isinstance(one, Constant):
                return not self._branch_allows(other, one.value)
        if type(a) is not type(b):
            return True
        if isinstance(a, Plain):
            return a != b
        if isinstance(a, Text) and isinstance(b, Text):
            for text, other_text in ((a, b), (b, a)):
                if text.choices is not None:
                    return not any(other_text.allows(choice) for choice in text.choices)
            return (a.most is not None and a.most < b.least) or (b.most is not None and b.most < a.least)
        if isinstance(a, Number) and isinstance(b, Number):
            return _is_below(a, b) or _is_below(b, a)
        if isinstance(a, Object) and isinstance(b, Object):
            for name in {*a.required, *b.required}:
                written = self.property_of(dataclasses.replace(a, is_open=False), name)
                allowed = self.property_of(b, name)
                if (written is None and name in b.required) or (allowed is None and name in a.required):
                    return True
                both = name in a.required and name in b.required
                if (
                    both
                    and written is not None
                    and allowed is not None
                    and self._nodes_apart(written, allowed, depth - 1)
                ):
                    return True
        return False

    # --- one combination ---

    def _combined(self, closure: Node) -> list[Branch]:
        """Returns the branches of schemas that all hold and have no alternatives: one branch for each type."""
        parts = [(self._document.schemas[number], self._document.paths[number]) for number in sorted(closure)]
        kinds, integers = set(_TYPES), False
        values: list[Json] | None = None
        for schema, path in parts:
            if "type" in schema:
                given = self._types(schema["type"], path)
                integers |= "integer" in given and "number" not in given
                kinds &= {"number" if kind == "integer" else kind for kind in given}
            for word in ("const", "enum"):
                if word in schema:
                    these = [schema["const"]] if word == "const" else self._document.list_of(schema, "enum", path)
                    if values is None:
                        values = these
                    elif self._document.may_go_on(len(values) * len(these) // 16):
                        values = [value for value in values if any(same(value, one) for one in these)]
        if values is not None:
            kinds &= {kind_of(value) for value in values}
        found: list[Branch] = []
        for kind in _TYPES:
            if kind not in kinds:
                continue
            if kind in ("null", "boolean"):
                found.append(Plain(kind))
            elif kind == "number":
                found += number_branch(self._document, parts, integers)
            elif kind == "string":
                found += text_branch(self._document, parts)
            elif kind == "array":
                found += array_branch(self._document, parts, values is not None)
            else:
                found += object_branches(self._document, parts, self.branches)
        if values is None:
            return found
        fitting = [value for value in values if any(self._branch_allows(branch, value) for branch in found)]
        texts = tuple(dict.fromkeys(value for value in fitting if isinstance(value, str)))
        others = {json.dumps(value, sort_keys=True): value for value in fitting if not isinstance(value, str)}
        return [*([Text(choices=texts)] if texts else []), *map(Constant, others.values())]

    def _types(self, given: object, path: str) -> set[str]:
        names = [given] if isinstance(given, str) else given
        known = {*_TYPES, "integer"}
        if not isinstance(names, list) or not all(isinstance(name, str) and name in known for name in names):
            self._document.malformed("type", path, f"one of {', '.join(sorted(known))}, or a list of them", given)
            return set(_TYPES)
        return set(names)


def _within(count: int, least: int, most: int | None) -> bool:
    return least <= count and (most is None or count <= most)


def _is_below(a: Number, b: Number) -> bool:
    """Returns whether every number in `a` is below every number in `b`."""
    if a.high is None or b.low is None:
        return False
    return a.high[0] < b.low[0] or (a.high[0] == b.low[0] and (a.high[1] or b.low[1]))
