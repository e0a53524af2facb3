"""Forced calls on the tiny model: the arguments fit the whole schema, or it is refused by the keyword's name."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import longcat
import pytest
from longcat.chat.tool_grammar import call_grammar

from support.tool_schemas import ENFORCED, REFUSED, random_object

jsonschema = pytest.importorskip("jsonschema", reason="needs the extra `test`")
pytest.importorskip("llguidance", reason="needs the extra `server`")

# A longer sweep: LONGCAT_FORCED_SCHEMAS=1000 LONGCAT_FORCED_SEEDS=3 pytest tests/chat/test_forced_calls.py
ASK = [{"role": "user", "content": "Call f"}]
NUM_RANDOM = int(os.environ.get("LONGCAT_FORCED_SCHEMAS", "80"))
NUM_SEEDS = int(os.environ.get("LONGCAT_FORCED_SEEDS", "1"))


def tool(parameters: Any, name: str = "f") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


def forced_calls(folder: str, schemas: list[Any], seeds: int = 1, max_tokens: int = 160) -> list[tuple[Any, Any, str]]:
    """(schema, arguments, finish_reason) of a forced call for each."""

    async def one(engine: longcat.Engine, schema: Any, seed: int) -> tuple[Any, Any, str]:
        last = None
        async for chunk in engine.achat(
            ASK,
            tools=[tool(schema)],
            tool_choice={"function": {"name": "f"}},
            seed=seed,
            max_tokens=max_tokens,
            temperature=1.5,
            top_k=0,
            top_p=1,
            repetition_penalty=1,
        ):
            last = chunk
        assert last is not None and last.output is not None
        [call] = last.output.message["tool_calls"]
        return schema, call["function"]["arguments"], last.output.outputs[0].finish_reason or ""

    async def run(engine: longcat.Engine) -> list[tuple[Any, Any, str]]:
        jobs = [one(engine, schema, seed) for schema in schemas for seed in range(seeds)]
        return await asyncio.gather(*jobs)

    with longcat.Engine(folder, max_num_seqs=32) as engine:
        return asyncio.run(run(engine))


def test_forced_calls_fit_their_schemas(tiny):
    rng = random.Random(5)
    schemas = [*ENFORCED.values(), *(random_object(rng) for _ in range(NUM_RANDOM))]
    results = forced_calls(tiny, schemas, NUM_SEEDS)
    ends: Counter[str] = Counter()
    for schema, arguments, reason in results:
        ends[reason] += 1
        if reason == "tool_calls":
            jsonschema.validate(arguments, schema)
        else:
            assert reason == "length" and isinstance(arguments, str), (reason, schema, arguments)
    print(f"{len(schemas)} schemas, {len(results)} calls: {dict(ends)}")
    assert len(schemas) >= 200 and ends["length"] < 0.1 * len(results)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(name):
    schema, word = REFUSED[name]
    with pytest.raises(ValueError) as raised:
        call_grammar([{"name": "f", "parameters": schema}], several=False)
    message = str(raised.value)
    assert word in message and message.startswith('[tool "f"] found ') and "; expected " in message
    assert "\n" not in message and "longcat_arg_key" not in message


def test_forms_of_answers_are_refused_the_same_way(tiny):
    with longcat.Engine(tiny) as engine:
        for name, (schema, word) in REFUSED.items():
            if name in ("nothing fits", "enum with a tag"):  # of arguments alone
                continue
            with pytest.raises(ValueError) as raised:
                engine.compile_grammar({"json": schema})
            assert word in str(raised.value) or "no value fits" in str(raised.value), name
