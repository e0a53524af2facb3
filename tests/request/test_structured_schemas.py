"""200 JSON schemas of many kinds: each completion that ends by itself is valid."""

import asyncio
import json
import random
import time
from collections import Counter

import longcat
import pytest

jsonschema = pytest.importorskip("jsonschema", reason="needs the extra `test`")
pytest.importorskip("llguidance", reason="needs the extra `server`")

NUM_SCHEMAS = 200


def make_schema(rng: random.Random, depth: int = 0):
    """A schema whose values are short."""
    simple = [
        lambda: {"type": "string", "maxLength": rng.randint(0, 12)},
        lambda: {"type": "string", "minLength": 2, "maxLength": rng.randint(2, 8)},
        lambda: {"type": "string", "enum": rng.sample(["red", "green", 'it\'s "x"', "é", "a b"], 3)},
        lambda: {"type": "string", "pattern": rng.choice(["^[a-z]{1,5}$", "^[0-9]{3}-[A-F]{2}$", "^(yes|no)!?$"])},
        lambda: {"type": "string", "format": rng.choice(["date", "time", "uuid", "ipv4", "date-time"])},
        lambda: {"type": "integer", "minimum": rng.randint(-50, 0), "maximum": rng.randint(1, 2000)},
        lambda: {"type": "integer", "multipleOf": rng.choice([2, 5]), "minimum": 0, "maximum": 100},
        lambda: {"type": "number", "enum": [0.5, 1.25, -3e2]},
        lambda: {"type": "boolean"},
        lambda: {"type": "null"},
        lambda: {"const": rng.choice([1, "x", None, [1, 2], {"a": 1}])},
        lambda: {"enum": [1, "two", None, [3]]},
        lambda: {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    ]
    nested = [
        lambda: {"type": "array", "items": make_schema(rng, depth + 1), "minItems": rng.randint(0, 1),
                 "maxItems": rng.randint(1, 3)},
        lambda: {"type": "array", "prefixItems": [make_schema(rng, depth + 1) for _ in range(2)], "items": False,
                 "minItems": 2},
        lambda: make_object(rng, depth),
        lambda: make_object(rng, depth),
        lambda: {"anyOf": [make_schema(rng, depth + 1) for _ in range(2)]},
        lambda: {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]},
    ]  # fmt: skip
    return rng.choice(simple if depth > 2 or (depth and rng.random() < 0.6) else nested)()


def make_object(rng, depth):
    names = rng.sample(["name", "age", "tags", "x-1", "größe", "a b", "$id"], rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: make_schema(rng, depth + 1) for name in names},
        "required": rng.sample(names, rng.randint(1, len(names))),
        "additionalProperties": False,
    }


def schemas():
    rng = random.Random(11)
    made = [make_schema(rng) for _ in range(NUM_SCHEMAS - 2)]
    tree = {"$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer", "maximum": 9, "minimum": 0},
            "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, "required": ["v", "next"],
            "additionalProperties": False}}, "$ref": "#/$defs/node"}  # fmt: skip
    return [*made, tree, {"type": "array", "items": {"$ref": "#/definitions/p"}, "maxItems": 2,
                          "definitions": {"p": {"type": "boolean"}}}]  # fmt: skip


def test_finished_completions_are_valid(tiny):
    async def one(engine, index, schema):
        text, reason = "", None
        try:
            async for chunk in engine.agenerate(
                "Once upon a time", structured_outputs={"json": schema}, max_tokens=300, seed=index, temperature=1.0
            ):
                text += chunk.delta
                reason = chunk.finish_reason
        except ValueError as error:
            return "refused", str(error)
        return reason, text

    async def run(engine):
        return await asyncio.gather(*(one(engine, i, schema) for i, schema in enumerate(schemas())))

    start = time.perf_counter()
    with longcat.Engine(tiny, max_num_seqs=32) as engine:
        results = asyncio.run(run(engine))
    for schema, (reason, text) in zip(schemas(), results, strict=True):
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema)
        else:
            print(f"{reason}: {text[:100]!r} {json.dumps(schema)[:200]}")
    counts = Counter(reason for reason, _ in results)
    print(f"{NUM_SCHEMAS} schemas in {time.perf_counter() - start:.1f} s: {dict(counts)}")
    assert counts["stop"] >= 0.9 * NUM_SCHEMAS and not counts["error"]
