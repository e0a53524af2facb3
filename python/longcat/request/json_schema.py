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
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias
from urllib.parse import unquote

from longcat.request.patterns import FORMATS, UNENFORCED_FORMATS, PatternError, matches, whole
from longcat.support.json_types import Json, JsonObject

Node: TypeAlias = "frozenset[int]"  # numbers of schemas that all hold; empty: any value
ANYTHING: Node = frozenset()
_TYPES = ("null", "boolean", "number", "string", "array", "object")
_MAX_ALTERNATIVES = 512  # of one node
_MAX_STEPS = 20_000  # of a whole document
_MAX_NODES = 4096
_MAX_PROOF_DEPTH = 3
_REMEDY = "docs/serving.md has the table of keywords"


class SchemaError(ValueError):
    """The schema is malformed, or has a word that restricts values and cannot be enforced. The message names it."""


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
        return isinstance(other, Constant) and _same(self.value, other.value)  # Python's 1 == True is no match


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


class SchemaReader:
    """Reads one schema document.

    Args:
        document: the schema.
        name: name of the document in messages.
        lenient: ignore words that cannot be enforced, and let malformed parts allow any value.
    """

    def __init__(self, document: object, name: str = "schema", lenient: bool = False):
        self._document = document
        self._name = name
        self._lenient = lenient
        self._schemas: list[Json] = []
        self._paths: list[str] = []
        self._numbers: dict[int, int] = {}  # by the identity of the schema, which _schemas keeps alive
        self._made: dict[tuple[Json, ...], int] = {}  # schemas that the document does not have as such
        self._branches: dict[Node, tuple[Branch, ...]] = {}
        self._checked: set[int] = set()
        self._exclusive_groups: set[tuple[int, ...]] = set()
        self._in_proof: set[tuple[int, ...]] = set()
        self._num_steps = 0
        self.root: Node | None = self._node([(document, "")])

    # --- reading ---

    def branches(self, node: Node) -> tuple[Branch, ...]:
        """Returns the branches of `node`. A value fits if one branch allows it. Empty: no value fits.

        Raises:
            SchemaError: a word of the schema cannot be enforced, or is malformed.
        """
        if node not in self._branches:
            if len(self._branches) >= _MAX_NODES:
                self._fail(f"more than {_MAX_NODES} kinds of values", "a smaller schema", "Make it smaller")
            self._branches[node] = tuple(self._read(node))
        return self._branches[node]

    def allows(self, node: Node | None, value: object) -> bool:
        """Returns whether a value fits `node`."""
        return node is not None and any(self._branch_allows(branch, value) for branch in self.branches(node))

    def _branch_allows(self, branch: Branch, value: object) -> bool:
        if isinstance(branch, (Text, Number)):
            return branch.allows(value)
        if isinstance(branch, Constant):
            return _same(branch.value, value)
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
                nodes = {name: self._node([({"const": value}, "")]) for name, value in branch.value.items()}
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
            if len(found) > _MAX_ALTERNATIVES or not self._may_go_on():
                what = f"more than {_MAX_ALTERNATIVES} combinations of anyOf, oneOf and the like"
                self._fail(what, "fewer", "Leave some out")
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

    def _may_go_on(self, steps: int = 1) -> bool:
        """Counts work; returns whether the schema is still within the limit."""
        self._num_steps += steps
        return self._num_steps <= _MAX_STEPS

    def _one_of(self, closure: Node, settled: frozenset[tuple[int, ...]], group: tuple[int, ...]) -> list[Branch]:
        """Returns the branches of a oneOf, after a check that no value fits two of its alternatives."""
        self._in_proof.add(group)
        found: list[Branch] = []
        for one in group:
            mine = self._read(closure | {one}, settled | {group})
            for other in group:
                theirs = self.branches(frozenset({other})) if other != one and self._may_go_on() else ()
                if not all(self._apart(a, b, _MAX_PROOF_DEPTH) for a in mine for b in theirs):
                    path = self._paths[one].rpartition("/")[0].removesuffix("/oneOf")
                    self._refuse(
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
        while todo and self._may_go_on():
            number = todo.pop()
            schema = self._schemas[number]
            if schema is False:
                return None, []
            if number in closure or not isinstance(schema, dict):
                continue
            closure.add(number)
            self._check(number)
            path = self._paths[number]
            if "$ref" in schema and not (self._lenient and not isinstance(schema["$ref"], str)):
                todo.append(self._resolve(schema["$ref"], path))
            todo += [self._number(one, f"{path}/allOf/{i}") for i, one in enumerate(self._list(schema, "allOf", path))]
            for word in ("anyOf", "oneOf"):
                if word in schema:
                    parts = self._list(schema, word, path)
                    group = tuple(self._number(one, f"{path}/{word}/{i}") for i, one in enumerate(parts))
                    groups.append(self._exclusive(number, group) if word == "oneOf" else group)
            groups += self._dependents(number)
        return frozenset(closure), groups

    def _dependents(self, number: int) -> Iterator[tuple[int, ...]]:
        """Handles dependentRequired and dependentSchemas: either without the property, or with what it requires."""
        schema, path = self._schemas[number], self._paths[number]
        for word in ("dependentRequired", "dependentSchemas", "dependencies"):
            dependents = schema.get(word)
            if dependents is None:
                continue
            if not isinstance(dependents, dict):
                self._malformed(word, path, "an object")
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
                    self._make(("without", number, name), {"properties": {name: False}}, here),
                    self._make(("with", word, number, name), with_it, here),
                )

    def _exclusive(self, number: int, group: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the alternatives of a oneOf."""
        path = self._paths[number]
        alternatives = [self._schemas[one] for one in group]
        needs = [self._only_required(one) for one in alternatives]
        if all(needs) and len(needs) <= _MAX_ALTERNATIVES:  # "just one of these properties"
            made = []
            for i, names in enumerate(needs):
                others = [other for j, other in enumerate(needs) if j != i]
                if any(len(other or ()) != 1 for other in others):
                    break
                absent = {(other or [""])[0]: False for other in others}
                one = {"type": "object", "required": names, "properties": absent}
                made.append(self._make(("only", number, i), one, f"{path}/oneOf/{i}"))
            else:
                return tuple(made)
        if not self._lenient:
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
        parts = [(self._schemas[number], self._paths[number]) for number in sorted(closure)]
        kinds, integers = set(_TYPES), False
        values: list[Json] | None = None
        for schema, path in parts:
            if "type" in schema:
                given = self._types(schema["type"], path)
                integers |= "integer" in given and "number" not in given
                kinds &= {"number" if kind == "integer" else kind for kind in given}
            for word in ("const", "enum"):
                if word in schema:
                    these = [schema["const"]] if word == "const" else self._list(schema, "enum", path)
                    if values is None:
                        values = these
                    elif self._may_go_on(len(values) * len(these) // 16):
                        values = [value for value in values if any(_same(value, one) for one in these)]
        if values is not None:
            kinds &= {_kind(value) for value in values}
        found: list[Branch] = []
        for kind in _TYPES:
            if kind not in kinds:
                continue
            if kind in ("null", "boolean"):
                found.append(Plain(kind))
            elif kind == "number":
                found += self._number_branch(parts, integers)
            elif kind == "string":
                found += self._text_branch(parts)
            elif kind == "array":
                found += self._array_branch(parts, values is not None)
            else:
                found += self._object_branches(parts)
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
            self._malformed("type", path, f"one of {', '.join(sorted(known))}, or a list of them", given)
            return set(_TYPES)
        return set(names)

    def _number_branch(self, parts: list[tuple[dict[str, object], str]], is_integer: bool) -> list[Branch]:
        low: tuple[float, bool] | None = None
        high: tuple[float, bool] | None = None
        multiple: Fraction | None = None
        for schema, path in parts:
            for word in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"):
                value = schema.get(word)
                if value is None or (isinstance(value, bool) and word.startswith("exclusive")):
                    continue
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    self._malformed(word, path, "a number", value)
                    continue
                if word == "multipleOf":
                    multiple = self._multiple(multiple, value, path)
                elif word.endswith("nimum"):
                    bound = (value, word != "minimum" or schema.get("exclusiveMinimum") is True)
                    low = bound if low is None or bound > low else low
                else:
                    bound = (value, word != "maximum" or schema.get("exclusiveMaximum") is True)
                    high = bound if high is None or (-bound[0], bound[1]) > (-high[0], high[1]) else high
        if low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
            return []
        value = None if multiple is None else int(multiple) if multiple.denominator == 1 else float(multiple)
        return [Number(is_integer, low, high, value)]

    def _multiple(self, before: Fraction | None, value: float, path: str) -> Fraction | None:
        """Returns the least common multiple."""
        if value <= 0:
            self._malformed("multipleOf", path, "a number above 0", value)
            return before
        if Fraction(value).denominator > 64:  # validators divide in floating point, and say no to 0.07 of 0.01
            self._refuse("multipleOf", path, "a whole number, or halves, quarters, eighths", value)
            return before
        this = Fraction(value)
        if before is None:
            return this
        denominator = math.lcm(before.denominator, this.denominator)
        return Fraction(math.lcm(int(before * denominator), int(this * denominator)), denominator)

    def _text_branch(self, parts: list[tuple[dict[str, object], str]]) -> list[Branch]:
        least, most = self._bounds(parts, "minLength", "maxLength")
        patterns: list[str] = []
        for schema, path in parts:
            pattern, form = schema.get("pattern"), schema.get("format")
            if pattern is not None:
                if isinstance(pattern, str):
                    patterns += self._whole(pattern, "pattern", path)
                else:
                    self._malformed("pattern", path, "a text", pattern)
            if isinstance(form, str):
                if form in UNENFORCED_FORMATS:
                    self._refuse("format", path, f"one of {', '.join(FORMATS)}", form)
                elif form in FORMATS:
                    patterns.append(FORMATS[form])
        if most is not None and least > most:
            return []
        return [Text(least, most, tuple(dict.fromkeys(patterns)))]

    def _whole(self, pattern: str, word: str, path: str) -> list[str]:
        try:
            written = whole(pattern)
        except PatternError as error:
            self._fail(
                f'"{word}" at {path or "/"} with {error}: {_short(pattern)}',
                "a regular expression without look-around, back-references, boundaries and anchors inside",
                "Write it without them",
            )
            return []
        return [written] if written != whole("") else []

    def _array_branch(self, parts: list[tuple[dict[str, object], str]], is_listed: bool) -> list[Branch]:
        least, most = self._bounds(parts, "minItems", "maxItems")
        shapes: list[tuple[list[tuple[Json, str]], tuple[Json, str]]] = []
        for schema, path in parts:
            first, others, word = schema.get("prefixItems"), schema.get("items", True), "prefixItems"
            if isinstance(others, list):  # the older form
                first, others, word = others, schema.get("additionalItems", True), "items"
            if first is not None and not isinstance(first, list):
                self._malformed(word, path, "a list of schemas", first)
                first = None
            listed = [(one, f"{path}/{word}/{i}") for i, one in enumerate(first or ())]
            shapes.append((listed, (others, f"{path}/items")))
        others_node = self._node([others for _, others in shapes])
        first_nodes: list[Node] = []
        for i in range(max((len(first) for first, _ in shapes), default=0)):
            node = self._node([first[i] if i < len(first) else others for first, others in shapes])
            if node is None:
                most, others_node = (i if most is None else min(i, most)), None
                break
            first_nodes.append(node)
        if others_node is None:
            most = len(first_nodes) if most is None else min(most, len(first_nodes))
        if most is not None and least > most:
            return []
        for schema, path in parts:
            if schema.get("uniqueItems") is True and (most is None or most > 1) and not is_listed:
                self._refuse("uniqueItems", path, "maxItems of 1 at most beside it")
            if schema.get("contains") not in (None, True, {}) and schema.get("minContains") != 0:
                self._refuse("contains", path, "items, prefixItems")
            elif "maxContains" in schema and schema.get("contains") is not None:
                self._refuse("maxContains", path, "maxItems")
            elif schema.get("contains") is not None and schema.get("minContains") != 0:
                given = schema.get("minContains", 1)
                least = max(least, given if isinstance(given, int) else 1)
            if schema.get("unevaluatedItems", True) not in (True, {}):
                self._refuse("unevaluatedItems", path, "items")
        return [Array(tuple(first_nodes), others_node, least, most)]

    def _object_branches(self, parts: list[tuple[dict[str, object], str]]) -> list[Branch]:
        least, most = self._bounds(parts, "minProperties", "maxProperties")
        shapes = [self._object_part(schema, path) for schema, path in parts]
        names = list(
            dict.fromkeys(itertools.chain(*(shape.names for shape in shapes), *(shape.required for shape in shapes)))
        )
        for shape in shapes:
            if shape.by_pattern and not self._may_go_on(len(names) * len(shape.by_pattern) // 4):
                self._refuse("patternProperties", parts[0][1], "fewer of them")
                shape.by_pattern = []
        properties = {name: self._node([one for shape in shapes for one in shape.of(name)]) for name in names}
        others = self._node([shape.others for shape in shapes if shape.others is not None])
        with_patterns = [shape for shape in shapes if shape.by_pattern]
        if len(with_patterns) > 1:
            self._refuse("patternProperties", parts[0][1], "them in one of the combined schemas")
        by_pattern: list[tuple[str, Node]] = []
        for pattern, one in with_patterns[0].by_pattern if with_patterns else ():
            rest = [shape.others for shape in shapes if shape is not with_patterns[0] and shape.others is not None]
            node = self._node([one, *rest])
            if node is not None:
                by_pattern.append((pattern, node))
        is_open = others == ANYTHING and bool(names) and not by_pattern
        if is_open:
            others = None
        for schema, path in parts:
            if "propertyNames" in schema:
                named = self._named(schema["propertyNames"], path, properties, by_pattern, others)
                is_open = is_open and named[0] is properties
                properties, by_pattern, others = named
        required = tuple(name for name in names if any(name in shape.required for shape in shapes))
        if any(properties.get(name) is None for name in required):
            return []
        if others is None and not by_pattern and not is_open:
            properties = {name: node for name, node in properties.items() if node is not None}
        path = next((path for schema, path in parts if {"minProperties", "maxProperties"} & schema.keys()), "")
        return list(self._counted(Object(properties, required, tuple(by_pattern), others, least, most, is_open), path))

    def _counted(self, one: Object, path: str) -> Iterator[Object]:
        """Replaces minProperties and maxProperties by a list of the allowed combinations of properties."""
        if self._lenient:  # which is for checking, not for writing
            yield one
            return
        required = list(one.required)
        optional = [name for name, node in one.properties.items() if node is not None and name not in required]
        is_open = one.others is not None or bool(one.by_pattern)
        least = max(one.least - len(required), 0)
        most = None if one.most is None else one.most - len(required)
        if most is not None and (most < 0 or least > most):
            return
        if is_open:
            if least > 1 or (least == 1 and optional) or (most is not None and optional):
                word = "minProperties" if least else "maxProperties"
                self._refuse(word, path, "additionalProperties of false, or none but required properties")
                least, most = 0, None
            yield dataclasses.replace(
                one, least=least + len(required) if least else 0, most=one.most if most is not None else None
            )
            return
        if least > len(optional):
            return
        free = optional if most is None or most >= len(optional) else None
        choices = (
            [optional]
            if free is not None
            else [list(c) for c in self._some(optional, most or 0, "maxProperties", path)]
        )
        for allowed in choices:
            if not least:
                needed: Iterator[tuple[str, ...]] = iter([()])
            else:
                needed = self._some(allowed, least, "minProperties", path)
            for more in needed:
                properties = {
                    name: node if name in required or name in allowed else None for name, node in one.properties.items()
                }
                yield dataclasses.replace(
                    one,
                    properties=properties,
                    required=(*required, *more),
                    least=0,
                    most=None,
                    is_counted=bool(least or most is not None),
                )

    def _some(self, names: list[str], count: int, word: str, path: str) -> Iterator[tuple[str, ...]]:
        if math.comb(len(names), count) > 64:
            self._refuse(word, path, "at most 64 combinations of properties")
            return iter([tuple(names[:count])])
        return itertools.combinations(names, count)

    def _object_part(self, schema: dict[str, object], path: str) -> _ObjectPart:
        """One schema's words for objects."""
        part = _ObjectPart({}, [], [], None)
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            self._malformed("properties", path, "an object", properties)
            properties = {}
        part.names = {name: (one, f"{path}/properties/{name}") for name, one in properties.items()}
        required = schema.get("required", [])
        if isinstance(required, bool) and not required:
            required = []
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._malformed("required", path, "a list of names", required)
            required = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
        part.required = list(dict.fromkeys(required))
        by_pattern = schema.get("patternProperties", {})
        if not isinstance(by_pattern, dict):
            self._malformed("patternProperties", path, "an object", by_pattern)
            by_pattern = {}
        for pattern, one in by_pattern.items():
            written = self._whole(pattern, "patternProperties", path) or [whole("")]
            part.by_pattern.append((written[0], (one, f"{path}/patternProperties")))
        if "additionalProperties" in schema:
            part.others = (schema["additionalProperties"], f"{path}/additionalProperties")
        unevaluated = schema.get("unevaluatedProperties", True)
        if unevaluated not in (True, {}):
            if any(word in schema for word in ("$ref", "allOf", "anyOf", "oneOf", "dependentSchemas")):
                self._refuse("unevaluatedProperties", path, "additionalProperties")
            elif part.others is None:
                part.others = (unevaluated, f"{path}/unevaluatedProperties")
        return part

    def _named(
        self,
        names: object,
        path: str,
        properties: dict[str, Node | None],
        by_pattern: list[tuple[str, Node]],
        others: Node | None,
    ) -> tuple[dict[str, Node | None], list[tuple[str, Node]], Node | None]:
        """Returns the last three arguments, limited to names that the schema `names` (propertyNames) allows."""
        node = self._node([(names, f"{path}/propertyNames")])
        texts = [] if node is None else [branch for branch in self.branches(node) if isinstance(branch, Text)]
        if any(text.is_free() for text in texts):
            return properties, by_pattern, others
        kept = {name: one if any(text.allows(name) for text in texts) else None for name, one in properties.items()}
        if others is None and not by_pattern:
            return kept, by_pattern, others
        if by_pattern or not texts:
            if texts:
                self._refuse("propertyNames", path, "patternProperties")
            return kept, [], None
        listed = [choice for text in texts for choice in text.choices or ()]
        if all(text.choices is not None for text in texts):
            return kept | {name: others for name in listed if name not in kept}, [], None
        [text, *more] = texts
        if more or len(text.patterns) > 1 or (text.patterns and (text.least or text.most is not None)):
            self._refuse("propertyNames", path, "an enum or one pattern")
            return kept, [], None
        assert others is not None
        length = f"(?s:.{{{text.least},{'' if text.most is None else text.most}}})"
        return kept, [(text.patterns[0] if text.patterns else length, others)], None

    def _bounds(self, parts: list[tuple[JsonObject, str]], low: str, high: str) -> tuple[int, int | None]:
        least, most = 0, None
        for schema, path in parts:
            for word in (low, high):
                value = schema.get(word)
                if value is None:
                    continue
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
                if not is_number or value != int(value) or value < 0:
                    self._malformed(word, path, "a whole number from 0 on", value)
                elif word == low:
                    least = max(least, int(value))
                else:
                    most = int(value) if most is None else min(most, int(value))
        return least, most

    # --- the document ---

    def _check(self, number: int) -> None:
        """Raises SchemaError for words that restrict values of any type and that this module does not read."""
        if number in self._checked:
            return
        self._checked.add(number)
        schema, path = self._schemas[number], self._paths[number]
        if "not" in schema and schema["not"] is not False:
            self._refuse("not", path, "what is allowed, in place of what is not")
        if "if" in schema and any(schema.get(word, True) not in (True, {}) for word in ("then", "else")):
            self._refuse("if", path, "anyOf")
        for word in ("$dynamicRef", "$recursiveRef"):
            if word in schema:
                self._refuse(word, path, "$ref")

    def _resolve(self, reference: object, path: str) -> int:
        if not isinstance(reference, str):
            self._malformed("$ref", path, "a text such as #/$defs/name", reference)
            return self._number(True, path)
        base, _, fragment = reference.partition("#")
        root_id = self._document.get("$id", self._document.get("id")) if isinstance(self._document, dict) else None
        found: Json = self._document
        if base and (not isinstance(root_id, str) or base != root_id.rstrip("#")):
            self._refuse("$ref", path, "a reference into the same schema", reference)
            return self._number(True, path)
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
            if not self._lenient:
                self._fail(
                    f'"$ref" at {path or "/"} to {_short(reference)}, where there is no schema',
                    "#/$defs/name or the like",
                    "Add it",
                )
            return self._number(True, path)
        return self._number(found, f"{reference.removeprefix('#')}")

    def _node(self, schemas: Sequence[tuple[object, str]]) -> Node | None:
        """Makes a node of schemas, given with their paths; None if one schema is false."""
        numbers = []
        for schema, path in schemas:
            if schema is False:
                return None
            if schema is not True and schema != {}:
                number = self._number(schema, path)
                if self._schemas[number] is not True:
                    numbers.append(number)
        return frozenset(numbers)

    def _number(self, schema: object, path: str) -> int:
        if not isinstance(schema, (dict, bool)):
            self._malformed("schema", path, "an object, true or false", schema)
            schema = True
        if isinstance(schema, bool):
            return self._make(("bool", schema), schema, path)
        if id(schema) not in self._numbers:
            self._numbers[id(schema)] = self._append(schema, path)
        return self._numbers[id(schema)]

    def _make(self, key: tuple[object, ...], schema: object, path: str) -> int:
        if key not in self._made:
            self._made[key] = self._append(schema, path)
        return self._made[key]

    def _append(self, schema: object, path: str) -> int:
        self._schemas.append(schema)
        self._paths.append(path)
        return len(self._schemas) - 1

    def _list(self, schema: dict[str, object], word: str, path: str) -> list[Json]:
        value = schema.get(word, [])
        if not isinstance(value, list):
            self._malformed(word, path, "a list", value)
            return []
        return value

    def _refuse(self, word: str, path: str, expected: str, found: object = None) -> None:
        shown = "" if found is None else f" of {_short(found)}"
        self._fail(f'"{word}"{shown} at {path or "/"}, which cannot be enforced', expected, f"Leave it out; {_REMEDY}")

    def _malformed(self, word: str, path: str, expected: str, found: object = None) -> None:
        self._fail(f'"{word}" of {_short(found)} at {path or "/"}', expected, "Correct it")

    def _fail(self, found: str, expected: str, remedy: str) -> None:
        if not self._lenient:
            raise SchemaError(f"[{self._name}] found {found}; expected {expected}. {remedy}.")


@dataclass
class _ObjectPart:
    names: dict[str, tuple[Json, str]]
    required: list[str]
    by_pattern: list[tuple[str, tuple[Json, str]]]
    others: tuple[Json, str] | None

    def of(self, name: str) -> list[tuple[Json, str]]:
        """The schemas of a property."""
        found = [self.names[name]] if name in self.names else []
        found += [one for pattern, one in self.by_pattern if matches(pattern, name)]
        return found or ([] if self.others is None else [self.others])


_MISSING = object()
_KEYWORDS = frozenset(
    "type enum const allOf anyOf oneOf not if then else $ref $dynamicRef $recursiveRef properties required "
    "patternProperties additionalProperties unevaluatedProperties propertyNames minProperties maxProperties "
    "dependentRequired dependentSchemas dependencies items prefixItems additionalItems unevaluatedItems contains "
    "minContains maxContains uniqueItems minItems maxItems minLength maxLength pattern format minimum maximum "
    "exclusiveMinimum exclusiveMaximum multipleOf".split()
)


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


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (str, list, dict)):
        return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
    return "number"


def _same(a: Json, b: Json) -> bool:
    """Returns whether two values are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if _kind(a) != _kind(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return bool(a == b)


def _within(count: int, least: int, most: int | None) -> bool:
    return least <= count and (most is None or count <= most)


def _is_below(a: Number, b: Number) -> bool:
    """Returns whether every number in `a` is below every number in `b`."""
    if a.high is None or b.low is None:
        return False
    return a.high[0] < b.low[0] or (a.high[0] == b.low[0] and (a.high[1] or b.low[1]))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
