"""The branches of each type, from the keywords of schemas that all hold."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from longcat.request.patterns import FORMATS, UNENFORCED_FORMATS, PatternError, matches, whole
from longcat.request.schema.branches import ANYTHING, Array, Branch, Node, Number, Object, Text
from longcat.request.schema.document import SchemaDocument, short
from longcat.support.json_types import Json, JsonObject


def number_branch(
    document: SchemaDocument, parts: list[tuple[dict[str, object], str]], is_integer: bool
) -> list[Branch]:
    """Reads the keywords of numbers. No branch: no number fits."""
    low: tuple[float, bool] | None = None
    high: tuple[float, bool] | None = None
    multiple: Fraction | None = None
    for schema, path in parts:
        for word in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf"):
            value = schema.get(word)
            if value is None or (isinstance(value, bool) and word.startswith("exclusive")):
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                document.malformed(word, path, "a number", value)
                continue
            if word == "multipleOf":
                multiple = _multiple(document, multiple, value, path)
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


def _multiple(document: SchemaDocument, before: Fraction | None, value: float, path: str) -> Fraction | None:
    """Returns the least common multiple."""
    if value <= 0:
        document.malformed("multipleOf", path, "a number above 0", value)
        return before
    if Fraction(value).denominator > 64:  # validators divide in floating point, and say no to 0.07 of 0.01
        document.refuse("multipleOf", path, "a whole number, or halves, quarters, eighths", value)
        return before
    this = Fraction(value)
    if before is None:
        return this
    denominator = math.lcm(before.denominator, this.denominator)
    return Fraction(math.lcm(int(before * denominator), int(this * denominator)), denominator)


def text_branch(document: SchemaDocument, parts: list[tuple[dict[str, object], str]]) -> list[Branch]:
    """Reads the keywords of texts."""
    least, most = _bounds(document, parts, "minLength", "maxLength")
    patterns: list[str] = []
    for schema, path in parts:
        pattern, form = schema.get("pattern"), schema.get("format")
        if pattern is not None:
            if isinstance(pattern, str):
                patterns += _whole(document, pattern, "pattern", path)
            else:
                document.malformed("pattern", path, "a text", pattern)
        if isinstance(form, str):
            if form in UNENFORCED_FORMATS:
                document.refuse("format", path, f"one of {', '.join(FORMATS)}", form)
            elif form in FORMATS:
                patterns.append(FORMATS[form])
    if most is not None and least > most:
        return []
    return [Text(least, most, tuple(dict.fromkeys(patterns)))]


def _whole(document: SchemaDocument, pattern: str, word: str, path: str) -> list[str]:
    try:
        written = whole(pattern)
    except PatternError as error:
        document.fail(
            f'"{word}" at {path or "/"} with {error}: {short(pattern)}',
            "a regular expression without look-around, back-references, boundaries and anchors inside",
            "Write it without them",
        )
        return []
    return [written] if written != whole("") else []


def array_branch(document: SchemaDocument, parts: list[tuple[dict[str, object], str]], is_listed: bool) -> list[Branch]:
    """Reads the keywords of arrays. `is_listed`: an enum or a const lists the values."""
    least, most = _bounds(document, parts, "minItems", "maxItems")
    shapes: list[tuple[list[tuple[Json, str]], tuple[Json, str]]] = []
    for schema, path in parts:
        first, others, word = schema.get("prefixItems"), schema.get("items", True), "prefixItems"
        if isinstance(others, list):  # the older form
            first, others, word = others, schema.get("additionalItems", True), "items"
        if first is not None and not isinstance(first, list):
            document.malformed(word, path, "a list of schemas", first)
            first = None
        listed = [(one, f"{path}/{word}/{i}") for i, one in enumerate(first or ())]
        shapes.append((listed, (others, f"{path}/items")))
    others_node = document.node([others for _, others in shapes])
    first_nodes: list[Node] = []
    for i in range(max((len(first) for first, _ in shapes), default=0)):
        node = document.node([first[i] if i < len(first) else others for first, others in shapes])
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
            document.refuse("uniqueItems", path, "maxItems of 1 at most beside it")
        if schema.get("contains") not in (None, True, {}) and schema.get("minContains") != 0:
            document.refuse("contains", path, "items, prefixItems")
        elif "maxContains" in schema and schema.get("contains") is not None:
            document.refuse("maxContains", path, "maxItems")
        elif schema.get("contains") is not None and schema.get("minContains") != 0:
            given = schema.get("minContains", 1)
            least = max(least, given if isinstance(given, int) else 1)
        if schema.get("unevaluatedItems", True) not in (True, {}):
            document.refuse("unevaluatedItems", path, "items")
    return [Array(tuple(first_nodes), others_node, least, most)]


def object_branches(
    document: SchemaDocument,
    parts: list[tuple[dict[str, object], str]],
    branches_of: Callable[[Node], tuple[Branch, ...]],
) -> list[Branch]:
    """Reads the keywords of objects. `branches_of` gives the branches of a node, which propertyNames needs."""
    least, most = _bounds(document, parts, "minProperties", "maxProperties")
    shapes = [_object_part(document, schema, path) for schema, path in parts]
    names = list(
        dict.fromkeys(itertools.chain(*(shape.names for shape in shapes), *(shape.required for shape in shapes)))
    )
    for shape in shapes:
        if shape.by_pattern and not document.may_go_on(len(names) * len(shape.by_pattern) // 4):
            document.refuse("patternProperties", parts[0][1], "fewer of them")
            shape.by_pattern = []
    properties = {name: document.node([one for shape in shapes for one in shape.of(name)]) for name in names}
    others = document.node([shape.others for shape in shapes if shape.others is not None])
    with_patterns = [shape for shape in shapes if shape.by_pattern]
    if len(with_patterns) > 1:
        document.refuse("patternProperties", parts[0][1], "them in one of the combined schemas")
    by_pattern: list[tuple[str, Node]] = []
    for pattern, one in with_patterns[0].by_pattern if with_patterns else ():
        rest = [shape.others for shape in shapes if shape is not with_patterns[0] and shape.others is not None]
        node = document.node([one, *rest])
        if node is not None:
            by_pattern.append((pattern, node))
    is_open = others == ANYTHING and bool(names) and not by_pattern
    if is_open:
        others = None
    for schema, path in parts:
        if "propertyNames" in schema:
            node = document.node([(schema["propertyNames"], f"{path}/propertyNames")])
            texts = [] if node is None else [branch for branch in branches_of(node) if isinstance(branch, Text)]
            named = _named(document, texts, path, properties, by_pattern, others)
            is_open = is_open and named[0] is properties
            properties, by_pattern, others = named
    required = tuple(name for name in names if any(name in shape.required for shape in shapes))
    if any(properties.get(name) is None for name in required):
        return []
    if others is None and not by_pattern and not is_open:
        properties = {name: node for name, node in properties.items() if node is not None}
    path = next((path for schema, path in parts if {"minProperties", "maxProperties"} & schema.keys()), "")
    return list(_counted(document, Object(properties, required, tuple(by_pattern), others, least, most, is_open), path))


def _counted(document: SchemaDocument, one: Object, path: str) -> Iterator[Object]:
    """Replaces minProperties and maxProperties by a list of the allowed combinations of properties."""
    if document.lenient:  # which is for checking, not for writing
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
            document.refuse(word, path, "additionalProperties of false, or none but required properties")
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
        else [list(c) for c in _some(document, optional, most or 0, "maxProperties", path)]
    )
    for allowed in choices:
        if not least:
            needed: Iterator[tuple[str, ...]] = iter([()])
        else:
            needed = _some(document, allowed, least, "minProperties", path)
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


def _some(document: SchemaDocument, names: list[str], count: int, word: str, path: str) -> Iterator[tuple[str, ...]]:
    if math.comb(len(names), count) > 64:
        document.refuse(word, path, "at most 64 combinations of properties")
        return iter([tuple(names[:count])])
    return itertools.combinations(names, count)


def _object_part(document: SchemaDocument, schema: dict[str, object], path: str) -> _ObjectPart:
    """Reads one schema's keywords for objects."""
    part = _ObjectPart({}, [], [], None)
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        document.malformed("properties", path, "an object", properties)
        properties = {}
    part.names = {name: (one, f"{path}/properties/{name}") for name, one in properties.items()}
    required = schema.get("required", [])
    if isinstance(required, bool) and not required:
        required = []
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        document.malformed("required", path, "a list of names", required)
        required = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    part.required = list(dict.fromkeys(required))
    by_pattern = schema.get("patternProperties", {})
    if not isinstance(by_pattern, dict):
        document.malformed("patternProperties", path, "an object", by_pattern)
        by_pattern = {}
    for pattern, one in by_pattern.items():
        written = _whole(document, pattern, "patternProperties", path) or [whole("")]
        part.by_pattern.append((written[0], (one, f"{path}/patternProperties")))
    if "additionalProperties" in schema:
        part.others = (schema["additionalProperties"], f"{path}/additionalProperties")
    unevaluated = schema.get("unevaluatedProperties", True)
    if unevaluated not in (True, {}):
        if any(word in schema for word in ("$ref", "allOf", "anyOf", "oneOf", "dependentSchemas")):
            document.refuse("unevaluatedProperties", path, "additionalProperties")
        elif part.others is None:
            part.others = (unevaluated, f"{path}/unevaluatedProperties")
    return part


def _named(
    document: SchemaDocument,
    texts: list[Text],
    path: str,
    properties: dict[str, Node | None],
    by_pattern: list[tuple[str, Node]],
    others: Node | None,
) -> tuple[dict[str, Node | None], list[tuple[str, Node]], Node | None]:
    """Returns the last three arguments, limited to names that fit `texts` (propertyNames)."""
    if any(text.is_free() for text in texts):
        return properties, by_pattern, others
    kept = {name: one if any(text.allows(name) for text in texts) else None for name, one in properties.items()}
    if others is None and not by_pattern:
        return kept, by_pattern, others
    if by_pattern or not texts:
        if texts:
            document.refuse("propertyNames", path, "patternProperties")
        return kept, [], None
    listed = [choice for text in texts for choice in text.choices or ()]
    if all(text.choices is not None for text in texts):
        return kept | {name: others for name in listed if name not in kept}, [], None
    [text, *more] = texts
    if more or len(text.patterns) > 1 or (text.patterns and (text.least or text.most is not None)):
        document.refuse("propertyNames", path, "an enum or one pattern")
        return kept, [], None
    assert others is not None
    length = f"(?s:.{{{text.least},{'' if text.most is None else text.most}}})"
    return kept, [(text.patterns[0] if text.patterns else length, others)], None


def _bounds(
    document: SchemaDocument, parts: list[tuple[JsonObject, str]], low: str, high: str
) -> tuple[int, int | None]:
    least, most = 0, None
    for schema, path in parts:
        for word in (low, high):
            value = schema.get(word)
            if value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or value != int(value) or value < 0:
                document.malformed(word, path, "a whole number from 0 on", value)
            elif word == low:
                least = max(least, int(value))
            else:
                most = int(value) if most is None else min(most, int(value))
    return least, most


@dataclass
class _ObjectPart:
    """The keywords for objects of one schema."""

    names: dict[str, tuple[Json, str]]
    required: list[str]
    by_pattern: list[tuple[str, tuple[Json, str]]]
    others: tuple[Json, str] | None

    def of(self, name: str) -> list[tuple[Json, str]]:
        """The schemas of a property."""
        found = [self.names[name]] if name in self.names else []
        found += [one for pattern, one in self.by_pattern if matches(pattern, name)]
        return found or ([] if self.others is None else [self.others])
