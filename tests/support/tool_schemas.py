"""Schemas of tools, over every keyword that is enforced or refused: by hand, and by seed."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "maxLength": 12}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
NOTES: Schema = {
    "title": "T",
    "description": "d",
    "default": None,
    "examples": [1],
    "deprecated": True,
    "readOnly": True,
    "writeOnly": False,
    "$comment": "c",
    "x-order": 3,
    "errorMessage": "e",
    "format": "int32",
    "uniqueItems": False,
    "minItems": 2,
    "maxLength": 30,
    "pattern": "(?=never)",
    "minProperties": 9,
    "example": 4,
    "nullable": True,
}


def obj(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": needed, **more}


def one(schema: Any, **more: Any) -> Schema:
    return obj({"v": schema}, **more)


def text(**more: Any) -> Schema:
    return {"type": "string", **more}


_PATTERNS = [
    "^[0-9]{4}$",
    "^(?:a|b)$|^c{2}$",
    "(^a|b)$",
    r"^\d{2}-\w{1,3}$",
    "^[A-Z][a-z]{1,4}$",
    r"^a\/b\.c$",
    "^x|y$",
    "q",
    "^[^<>]{1,6}$",
    r"^\$[0-9]+\.[0-9]{2}$",
    "^$",
    "^ .{2,5} $",
    r"^[\w.-]{1,8}@x\.yz$",
    r"^[\]\\]{2}$",
]
_FORMATS = [
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "uri-reference",
    "iri",
    "json-pointer",
    "relative-json-pointer",
    "idn-email",
    "cuid",
    "binary",
    "password",
]

# Schemas that are enforced.
ENFORCED: dict[str, Schema] = {
    "no arguments": {"type": "object", "properties": {}},
    "no properties": {"type": "object"},
    "nothing at all": {},
    **{f"pattern {pattern}": one(text(pattern=pattern, maxLength=16)) for pattern in _PATTERNS},
    **{f"format {form}": one(text(format=form, maxLength=50)) for form in _FORMATS},
    "maxLength": one(text(maxLength=5)),
    "maxLength 0": one(text(maxLength=0)),
    "minLength": one(text(minLength=3, maxLength=6)),
    "maxLength of a float": one(text(maxLength=4.0)),
    "pattern and length": one(text(pattern="^a+", minLength=2, maxLength=4)),
    "pattern and format": one(text(pattern="^2", format="date")),
    "enum with an empty text": one(text(enum=["", "a", "b"])),
    "enum with spaces": one(text(enum=[" a", "b ", "\n", "\tc\n"])),
    "enum without type": one({"enum": ["1", "2", "true", "null"]}),
    "enum of all kinds": one({"enum": [1, "1", None, True, "x y", [1], {"a": 1}, 2.5]}),
    "enum and type": one({"type": "integer", "enum": [1, "a", 3]}),
    "enum and maxLength": one(text(enum=["a", "bb", "ccc"], maxLength=2)),
    "enum with quotes": one(text(enum=['"', "\\", 'a"b', "é", "漢字", "😀", "a\nb"])),
    "const text": one({"const": "1"}),
    "const number": one({"const": 2.5}),
    "const null": one({"const": None}),
    "const object": one({"const": {"a": [1, "x"]}}),
    "string with anyOf of consts": one(text(anyOf=[{"const": "a"}, {"const": "b"}])),
    "anyOf text, null": one({"anyOf": [TEXT, NULL]}),
    "type text, null": one({"type": ["string", "null"], "maxLength": 5}),
    "text or integer": one({"anyOf": [text(maxLength=2), {"type": "integer", "minimum": 100, "maximum": 9999}]}),
    "text or integer by pattern": one({"anyOf": [text(pattern="^[a-z]{1,4}$"), DIGIT]}),
    "digits as text or integer": one(
        {"anyOf": [text(pattern="^[0-9]$"), {"type": "integer", "maximum": 99, "minimum": 0}]}
    ),
    "text or list": one({"anyOf": [text(maxLength=6), {"type": "array", "items": TEXT, "maxItems": 2}]}),
    "oneOf types": one({"oneOf": [TEXT, DIGIT, NULL]}),
    "oneOf ranges": one(
        {"oneOf": [{"type": "integer", "maximum": 3, "minimum": 0}, {"type": "integer", "minimum": 5, "maximum": 7}]}
    ),
    "oneOf by constant": one(
        {"oneOf": [obj({"k": {"const": "a"}, "x": DIGIT}), obj({"k": {"const": "b"}, "y": FLAG})]}
    ),
    "oneOf, one required": obj({"a": DIGIT, "b": DIGIT}, [], oneOf=[{"required": ["a"]}, {"required": ["b"]}]),
    "oneOf at the root": {
        "type": "object",
        "oneOf": [obj({"k": {"enum": ["a"]}, "x": DIGIT}), obj({"k": {"const": "b"}})],
    },
    "anyOf at the root": {
        "type": "object",
        "properties": {"a": DIGIT, "b": DIGIT},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "allOf at the root": {"allOf": [obj({"a": DIGIT}), obj({"b": TEXT})]},
    "allOf of one argument": {"allOf": [one({"minimum": 5}), one({"type": "integer", "maximum": 7})]},
    "allOf with additionalProperties": {
        "allOf": [obj({"a": DIGIT}, additionalProperties=False), obj({"a": {"maximum": 3}})]
    },
    "allOf patterns": one({"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}], "maxLength": 6}),
    "const at the root": {"const": {"a": 1, "b": "x"}},
    "enum at the root": {"enum": [{"a": 1}, {"b": " y "}, {}]},
    "$ref at the root": {"$ref": "#/$defs/R", "$defs": {"R": obj({"a": DIGIT})}},
    "$ref": one({"$ref": "#/$defs/Z"}, **{"$defs": {"Z": text(pattern="^[0-9]{5}$")}}),
    "$ref by definitions": one({"$ref": "#/definitions/Z"}, definitions={"Z": DIGIT}),
    "$ref with siblings": one({"$ref": "#/$defs/Z", "maximum": 4, "description": "d"}, **{"$defs": {"Z": DIGIT}}),
    "$ref into properties": obj({"a": obj({"k": FLAG}), "b": {"$ref": "#/properties/a"}}),
    "$ref into items": obj(
        {"a": {"type": "array", "items": TEXT, "maxItems": 1}, "b": {"$ref": "#/properties/a/items"}}
    ),
    "$ref with escapes": one({"$ref": "#/$defs/a~1b~0c%20d"}, **{"$defs": {"a/b~c d": DIGIT}}),
    "$ref by anchor": one({"$ref": "#here"}, **{"$defs": {"q": {"$anchor": "here", **DIGIT}}}),
    "$ref in $ref": one({"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": DIGIT}}),
    "$ref to the root": {
        "type": "object",
        "properties": {"v": FLAG, "next": {"anyOf": [NULL, NULL, NULL, {"$ref": "#"}]}},
        "required": ["v", "next"],
    },
    "$ref recursive": one(
        {"$ref": "#/$defs/N"},
        **{
            "$defs": {
                "N": obj({"v": DIGIT, "next": {"anyOf": [{"$ref": "#/$defs/N"}, NULL]}}, additionalProperties=False)
            }
        },
    ),
    "dependentRequired": obj({"a": FLAG, "b": FLAG}, [], dependentRequired={"a": ["b"]}),
    "dependentRequired, chained": obj(
        {"a": FLAG, "b": FLAG, "c": FLAG}, ["a"], dependentRequired={"a": ["b"], "b": ["c"]}
    ),
    "dependentRequired within": one(obj({"a": FLAG, "b": FLAG}, [], dependentRequired={"a": ["b"]})),
    "dependentSchemas": obj(
        {"a": FLAG, "b": DIGIT}, ["b"], dependentSchemas={"a": {"properties": {"b": {"maximum": 1}}}}
    ),
    "dependencies": obj(
        {"a": FLAG, "b": FLAG},
        ["a"],
        dependencies={"a": ["b"]},
        **{"$schema": "http://json-schema.org/draft-07/schema#"},
    ),
    "minProperties": obj({"a": FLAG, "b": FLAG, "c": FLAG}, [], minProperties=2),
    "maxProperties": obj({"a": FLAG, "b": FLAG, "c": FLAG}, ["a"], maxProperties=2),
    "minProperties within": one(obj({"a": FLAG, "b": FLAG}, [], minProperties=1)),
    "minProperties of others": {
        "type": "object",
        "additionalProperties": DIGIT,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "additionalProperties": obj({"a": DIGIT}, additionalProperties=DIGIT, maxProperties=2),
    "additionalProperties within": one({"type": "object", "additionalProperties": DIGIT, "maxProperties": 2}),
    "patternProperties": {
        "type": "object",
        "patternProperties": {"^x-[a-z]{1,3}$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "patternProperties of a property": obj(
        {"ab": {"type": "integer"}},
        patternProperties={"^a": {"minimum": 2, "maximum": 4}},
        additionalProperties=False,
        maxProperties=1,
    ),
    "patternProperties within": one(
        {
            "type": "object",
            "patternProperties": {"^[ab]$": DIGIT, "^c": FLAG},
            "additionalProperties": False,
            "maxProperties": 2,
        }
    ),
    "propertyNames enum": {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": DIGIT},
    "propertyNames pattern": one(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z]{2}$"},
            "additionalProperties": DIGIT,
            "maxProperties": 2,
        }
    ),
    "propertyNames of text": one(
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": DIGIT, "maxProperties": 1}
    ),
    "unevaluatedProperties": obj({"a": DIGIT}, unevaluatedProperties=False),
    "required without properties": {
        "type": "object",
        "required": ["a"],
        "additionalProperties": DIGIT,
        "maxProperties": 1,
    },
    "property false": obj({"a": False, "b": DIGIT}, ["b"]),
    "property true": one({"anyOf": [{"maximum": 3, "minimum": 0, "type": "number"}]}),
    "names": obj(
        {
            "a b": DIGIT,
            " c ": DIGIT,
            'd"e': DIGIT,
            "größe": DIGIT,
            "$id": DIGIT,
            "x\\y": DIGIT,
            "<b>": DIGIT,
            "": DIGIT,
            " ": DIGIT,
            "\n": DIGIT,
        }
    ),
    "integer bounds": one({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 4}),
    "integer between": one({"type": "integer", "minimum": 0.5, "maximum": 2.5}),
    "integer multipleOf": one({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 50}),
    "number multipleOf": one({"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 2}),
    "multipleOf twice": one(
        {"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "minimum": 0, "maximum": 99}
    ),
    "number bounds": one({"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25}),
    "number": one({"type": "number"}),
    "old exclusiveMinimum": one(
        {"type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 5},
        **{"$schema": "http://json-schema.org/draft-04/schema#"},
    ),
    "items": one({"type": "array", "items": DIGIT, "minItems": 1, "maxItems": 3}),
    "prefixItems": one({"type": "array", "prefixItems": [DIGIT, TEXT], "items": False, "minItems": 2}),
    "prefixItems and items": one(
        {"type": "array", "prefixItems": [FLAG], "items": DIGIT, "minItems": 2, "maxItems": 3}
    ),
    "list of items": one(
        {"type": "array", "items": [DIGIT, FLAG], "additionalItems": False, "minItems": 2},
        **{"$schema": "http://json-schema.org/draft-07/schema#"},
    ),
    "uniqueItems of one": one({"type": "array", "items": DIGIT, "uniqueItems": True, "maxItems": 1}),
    "texts in a list": one({"type": "array", "items": text(pattern="^[a-c]{1,3}$"), "minItems": 1, "maxItems": 2}),
    "formats in a list": one({"type": "array", "items": text(format="date"), "minItems": 1, "maxItems": 1}),
    "notes on a number": one({"type": "integer", "minimum": 0, "maximum": 5, **NOTES}),
    "notes on a flag": one({"type": "boolean", **NOTES}),
    "notes at the root": obj(
        {"a": DIGIT},
        **{"title": "Args", "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.example/b"},
    ),
    "if alone": one({"type": "integer", "maximum": 3, "minimum": 0, "if": {"minimum": 2}}),
    "not false": one({"not": False, **DIGIT}),
    "optional ones": obj({"a": TEXT, "b": DIGIT, "c": FLAG}, ["b"]),
    "deep": one(obj({"w": obj({"x": {"type": "array", "items": obj({"y": text(enum=["p", "q"])}), "maxItems": 1}})})),
}

# What restricts and cannot be enforced: the schema, and the word that the refusal names.
REFUSED: dict[str, tuple[Schema, str]] = {
    "look-around": (one(text(pattern="(?=a)b")), "pattern"),
    "back-reference": (one(text(pattern="(a)\\1")), "pattern"),
    "boundary": (one(text(pattern="\\bfoo\\b")), "pattern"),
    "unclosed": (one(text(pattern="(")), "pattern"),
    "anchor inside": (one(text(pattern="a$b")), "pattern"),
    "pattern within": (one({"type": "array", "items": text(pattern="(?!a)")}), "pattern"),
    "pattern too short": (one(text(pattern="^a$", minLength=3)), "pattern"),
    "format regex": (one(text(format="regex")), "format"),
    "not": (one({"not": {"const": 1}}), "not"),
    "if": (one({"if": DIGIT, "then": {"minimum": 3}}), "if"),
    "contains": (one({"type": "array", "contains": DIGIT}), "contains"),
    "uniqueItems": (one({"type": "array", "items": DIGIT, "uniqueItems": True}), "uniqueItems"),
    "oneOf": (one({"oneOf": [text(), text(maxLength=3)]}), "oneOf"),
    "oneOf of open objects": (one({"oneOf": [obj({"a": DIGIT, "b": DIGIT}, ["a"]), obj({"b": DIGIT})]}), "oneOf"),
    "multipleOf": (one({"type": "number", "multipleOf": 0.01}), "multipleOf"),
    "propertyNames": (one({"propertyNames": {"maxLength": 3, "pattern": "^a"}, "type": "object"}), "propertyNames"),
    "unevaluatedProperties": ({"allOf": [obj({"a": DIGIT})], "unevaluatedProperties": False}, "unevaluatedProperties"),
    "unevaluatedItems": (one({"type": "array", "unevaluatedItems": False}), "unevaluatedItems"),
    "$dynamicRef": (one({"$dynamicRef": "#a"}), "$dynamicRef"),
    "$ref elsewhere": (one({"$ref": "https://a.example/schema.json"}), "$ref"),
    "$ref to nothing": (one({"$ref": "#/$defs/no"}), "$ref"),
    "minProperties": ({"type": "object", "additionalProperties": DIGIT, "minProperties": 3}, "minProperties"),
    "type": (one({"type": "text"}), "type"),
    "enum": (one({"enum": "a"}), "enum"),
    "enum with a tag": (one({"enum": ["</longcat_arg_value>"]}), "enum"),
    "minLength": (one(text(minLength=-1)), "minLength"),
    "required": (obj({"a": DIGIT}, None) | {"required": "a"}, "required"),
    "nothing fits": ({"type": "string"}, "type"),
    "a required one that is false": (obj({"a": False}), "no object fits"),
    "contradiction": (one({"type": "integer", "minimum": 5, "maximum": 1}), "no value fits"),
}


def random_schema(rng: random.Random, depth: int = 0) -> Schema:
    """The schema of one argument, whose values are short."""
    simple = [
        lambda: text(maxLength=rng.randint(0, 8)),
        lambda: text(minLength=1, maxLength=rng.randint(1, 5)),
        lambda: text(enum=rng.sample(["red", "", " a ", 'it\'s "x"', "é", "null", "true", "12"], 3)),
        lambda: text(pattern=rng.choice(["^[a-z]{1,5}$", "^[0-9]{3}-[A-F]{2}$", "^(yes|no)!?$", "^ +x$"])),
        lambda: text(format=rng.choice(["date", "time", "uuid", "ipv4", "date-time"])),
        lambda: {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 2000)},
        lambda: {"type": "integer", "multipleOf": rng.choice([2, 5]), "minimum": 0, "maximum": 100},
        lambda: {"type": "boolean", **NOTES},
        lambda: {"const": rng.choice([1, "x", None, " y", [1, 2], {"a": 1}, "2"])},
        lambda: {"enum": [1, "two", None, [3], "4"]},
        lambda: {"type": [rng.choice(["integer", "string"]), "null"], "minimum": 0, "maximum": 9, "maxLength": 3},
        lambda: {"$ref": "#/$defs/D"},
    ]
    nested = [
        lambda: {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(1, 2)},
        lambda: {"type": "array", "prefixItems": [random_schema(rng, depth + 1)], "items": False, "minItems": 1},
        lambda: random_object(rng, depth + 1),
        lambda: {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]},
        lambda: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    ]
    return rng.choice(simple if depth > 2 or rng.random() < 0.6 else nested)()


def random_object(rng: random.Random, depth: int = 0) -> Schema:
    names = rng.sample(["name", "age", "tags", "x-1", "größe", "a b"], rng.randint(1, 3))
    made = obj({name: random_schema(rng, depth) for name in names}, rng.sample(names, rng.randint(1, len(names))))
    if rng.random() < 0.4:
        made["additionalProperties"] = False
    return made | ({"$defs": {"D": DIGIT}} if depth == 0 else {})
