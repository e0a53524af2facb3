"""The reading of schemas: patterns and formats as others read them, values that fit, and schemas that are anything."""

from __future__ import annotations

import datetime
import ipaddress
import json
import random
import re
import uuid
from typing import Any

import pytest
from longcat.chat.tool_schema import ToolSchema
from longcat.request.patterns import FORMATS, PatternError, matches, whole, without
from longcat.request.schema.document import SchemaError
from longcat.request.schema.reader import SchemaReader

from support.tool_schemas import ENFORCED, random_schema

jsonschema = pytest.importorskip("jsonschema", reason="needs the extra `test`")
pytest.importorskip("llguidance", reason="needs the extra `server`")

PATTERNS = [
    "^[0-9]{4}$", "a", "^a", "a$", "^(?:a|b)$|c", "(^a|b)$", "^$", "", "^a|b$", "(a|b)+", r"[\w.-]+@x", "a/b",
    r"^\d{3}-\d{4}$", "^[^<]*$", "^.{2,3}$", r"\$5", r"^\^$", r"[\]a]", r"^\u0041+$", "(a$|b)", "^a-b~c#$", "^ x$",
    "^(a|b|)c?$", "a{2,}", "^[a-c-]+$", r"^\s+$", r"^[\d\s]+$", r"^\W$", "^((a))$", r"\/", "^x*?$",
]  # fmt: skip
TEXTS = [
    "", "a", "b", "c", "ab", "xa", "ax", "2024", "20245", "aa", "bb", "xc", "a/b", "123-4567", "ac", "bc", "<b>", "\n",
    "ab c", "$5", "^", "]", "A", "AA", "&", "x@x", "Ü", "2x", "a-b~c#", " x", "xx", " ", "1 2", "漢字", "😀", "a\tb",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_match_what_python_matches(pattern):
    strict = re.compile(re.sub(r"(?<!\\)\$", r"\\Z", pattern))  # Python's $ also ends before a line break
    for text in TEXTS:
        assert matches(whole(pattern), text) == bool(strict.search(text)), text


@pytest.mark.parametrize(
    "pattern", ["(?=a)b", "(a)\\1", "(", "[a", ")", "\\bfoo", "a$b", "(^a)+", "a{2}{3}", "*", "\\", "\\e", "a++", "[]"]
)
def test_patterns_that_cannot_be_enforced_say_why(pattern):
    with pytest.raises(PatternError) as raised:
        whole(pattern)
    assert len(str(raised.value)) < 80


def test_a_text_without_words():
    words = ["<longcat_", "</longcat_"]
    for text in ["", "a<b", "<li></li>",
                 "<l<longcat_", "<longcat", "<longcat_", "x</longcat_y", "<</longcat", "<<longcat_", "<//longcat_",
                 "</longca</longcat_", "<longcat<longcat"]:  # fmt: skip
        assert matches(without(words), text) == (not any(word in text for word in words)), text


def test_formats_allow_only_what_their_standards_allow():
    for year in (1900, 2000, 2023, 2024, 2100):
        for month in range(0, 14):
            for day in range(0, 33):
                text = f"{year}-{month:02}-{day:02}"
                try:
                    datetime.date.fromisoformat(text)
                except ValueError:
                    assert not matches(FORMATS["date"], text), text
                else:
                    assert matches(FORMATS["date"], text), text
    for form, good, bad in [
        ("time", "10:20:30Z", "24:00:00Z"), ("date-time", "2024-02-29T10:20:30.5+01:00", "2024-02-30T10:20:30Z"),
        ("duration", "P1DT2H", "P"), ("email", "a.b@c.d", "a@"), ("hostname", "a-b.c", "-a"),
        ("uri", "http://a.b/c?d#e", "a b"),
        ("json-pointer", "/a/~0b", "a"), ("relative-json-pointer", "1/a", "/a"),
    ]:  # fmt: skip
        assert matches(FORMATS[form], good) and not matches(FORMATS[form], bad), form
    for text in ("::1", "1:2:3:4:5:6:7:8", "1::2", "::"):
        assert matches(FORMATS["ipv6"], text) and ipaddress.ip_address(text)
    assert matches(FORMATS["uuid"], str(uuid.uuid4())) and matches(FORMATS["ipv4"], "1.20.255.0")


VALUES: list[Any] = [
    None, True, False, 0, 1, 5, 7, 100, -3, 2.5, 1.0, "", "a", " a", "12", "null", "red", "abcdef", [], [1], [1, 2],
    ["a"],
    {}, {"a": 1}, {"a": True, "b": True}, {"v": 1}, {"k": "a", "x": 1}, {"k": "b", "y": True}, [[3]], {"name": "x"},
]  # fmt: skip


def test_values_fit_as_a_validator_says():
    """Where both can tell: formats are notes to the validator."""
    rng = random.Random(3)
    schemas = [*ENFORCED.values(), *(random_schema(rng) for _ in range(150))]
    num_fitting = 0
    for schema in schemas:
        schema = (
            {**schema, "$defs": {"D": {"type": "integer"}}}
            if "$ref" in json.dumps(schema) and "$defs" not in schema
            else schema
        )
        if '"format"' in json.dumps(schema):
            continue
        reader, validator = SchemaReader(schema, lenient=True), jsonschema.validators.validator_for(schema)(schema)
        for value in [*VALUES, *({"v": one} for one in VALUES)]:
            assert reader.allows(reader.root, value) == validator.is_valid(value), (schema, value)
            num_fitting += validator.is_valid(value)
    assert num_fitting > 500


def test_any_schema_is_read():
    """Whatever a client sends as a schema is read or refused, and never ends in another error."""
    rng = random.Random(7)
    words = sorted(json.loads(json.dumps(_WORDS)))
    junk: list[Any] = [
        None,
        True,
        0,
        -1,
        1.5,
        1e400,
        "",
        "a",
        "#",
        "#/properties/v",
        "(",
        [],
        [1],
        ["a", "a"],
        {},
        {"a": []},
    ]

    def make(depth: int) -> Any:
        if depth > 3 or rng.random() < 0.3:
            return rng.choice(junk)
        made = {rng.choice(words): make(depth + 1) for _ in range(rng.randrange(4))}
        return rng.choice([made, [made], {"a": made}])

    for _ in range(3000):
        schema = {rng.choice(words): make(0) for _ in range(rng.randrange(1, 5))}
        tool = ToolSchema("f", schema)
        for text in ("null", "1", "a", "{}"):
            tool.value("a", text)
        tool.is_complete(["a"], for_good=True)
        for lenient in (True, False):
            try:
                reader = SchemaReader(schema, lenient=lenient)
                reader.allows(reader.root, {"a": 1})
            except SchemaError as error:
                assert not lenient and "\n" not in str(error) and len(str(error)) < 600


_WORDS = (
    "type enum const allOf anyOf oneOf not if then else $ref properties required patternProperties "
    "additionalProperties unevaluatedProperties propertyNames minProperties maxProperties dependentRequired "
    "dependentSchemas dependencies items prefixItems additionalItems unevaluatedItems contains minContains maxContains "
    "uniqueItems minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum multipleOf $defs"
).split()
