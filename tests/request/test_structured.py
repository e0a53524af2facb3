"""Completions held to a form, in Engine.generate and Engine.chat."""

import json
import re
import subprocess
import sys
import time

import longcat
import pytest

from support.hostile_grammars import HOSTILE

pytest.importorskip("llguidance", reason="needs the extra `server`")


@pytest.fixture(scope="module")
def engine(tiny):
    with longcat.Engine(tiny) as engine:
        yield engine


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_json_schema_regex_choice_grammar(engine):
    outputs = engine.generate(["A boy:", "A girl:"], structured_outputs={"json": PERSON}, n=2, max_tokens=120)
    for completion in [completion for output in outputs for completion in output.outputs]:
        person = json.loads(completion.text)
        assert completion.finish_reason == "stop"
        assert set(person) == {"name", "age"} and 0 <= person["age"] <= 99 and len(person["name"]) <= 12
    regex = engine.generate("Call", structured_outputs={"regex": "[0-9]{3}-[a-f]{2}"})
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", regex.text)
    assert engine.generate("Yes or no?", structured_outputs={"choice": ["yes", "no"]}).text in ("yes", "no")
    lark = engine.generate("x", structured_outputs=longcat.StructuredOutputs(grammar='start: "a" B\nB: /[bc]{3}/'))
    assert re.fullmatch("a[bc]{3}", lark.text)
    assert isinstance(json.loads(engine.generate("x", structured_outputs={"json": '{"enum": [1, 2]}'}).text), int)


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        ({"regex": "("}, ValueError, "unclosed group"),
        ({"regex": 3}, TypeError, "regex is a int"),
        ({"json": {"type": "number of legs"}}, ValueError, "number of legs"),
        ({"json": "{"}, ValueError, "JSON schema"),
        ({"grammar": "begin: 'a'"}, ValueError, "[grammar] found no rule `start`; expected one"),
        ({"grammar": 'start: "a" b'}, ValueError, "[grammar] found a name without a rule: b at line 1, column 8"),
        ({"grammar": "start: /(/"}, ValueError, "[grammar] found a regular expression that is not supported at line 1"),
        ({"regex": "(?=a)b"}, ValueError, "[regex] found look-around in (?=a)b"),
        ({"json": {"type": "string", "pattern": "a\\b"}}, ValueError, '[schema] found "pattern" at / with a boundary'),
        ({"json": {"type": "array", "uniqueItems": True}}, ValueError, '[schema] found "uniqueItems" at /'),
        ({"json": {"type": "integer", "minimum": 2, "maximum": 1}}, ValueError, "that no value fits"),
        ({"json": {"type": "string", "minLength": 2, "pattern": "^a$"}}, ValueError, "that no value fits"),
        ({"json": False}, ValueError, "no form"),
        ({"json": "false"}, ValueError, "that no value fits"),
        ({"choice": []}, ValueError, "non-empty"),
        ({"choice": "yes"}, ValueError, "list"),
        ({"jsn": {}}, TypeError, 'did you mean "json"'),
        ({}, ValueError, "no form"),
        ({"json": {}, "regex": "a"}, ValueError, "json and regex"),
        ({"regex": "\ud800"}, ValueError, "surrogate"),
        ({"regex": "a" * 300_000}, ValueError, "at most"),
    ],
)
def test_what_is_no_form_is_refused_in_one_line(engine, form, error, message):
    with pytest.raises(error, match=re.escape(message)) as raised:
        engine.generate("x", structured_outputs=form)
    assert "\n" not in str(raised.value)


def test_words_that_restrict_nothing_are_ignored(engine):
    notes = {"title": "T", "description": "d", "default": 1, "examples": [1], "$schema": "http://json-schema.org/schema#",
             "x-order": 1, "format": "int32", "uniqueItems": True, "pattern": "(?=a)", "errorMessage": "e"}  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0, **notes}}, **notes,
              "required": ["a"], "additionalProperties": False, "propertyNames": {"type": "string"}}  # fmt: skip
    completion = json.loads(engine.generate("x", structured_outputs={"json": schema}, max_tokens=30).text)
    assert list(completion) == ["a"] and 0 <= completion["a"] <= 9


def test_a_form_beside_tools_leaves_calls_possible(engine):
    form = {"json": {"type": "object", "properties": {"z": {"type": "boolean"}}, "required": ["z"]}}
    outs = [engine.chat(HELLO, tools=TOOLS, structured_outputs=form, seed=seed, max_tokens=300) for seed in range(8)]
    called = [out for out in outs if "tool_calls" in out.message]
    assert called
    for out in outs:
        if out.outputs[0].finish_reason == "stop":
            assert set(json.loads(out.message["content"])) == {"z"}
    for other in ({"regex": "[0-9]{3}"}, {"choice": ["yes", "no"]}, {"grammar": 'start: "a" b\nb: "c"'}):
        out = engine.chat(HELLO, tools=TOOLS[1:2], structured_outputs=other, seed=1, max_tokens=60)
        assert "tool_calls" in out.message or re.fullmatch("[0-9]{3}|yes|no|ac", out.message["content"])
    out = engine.chat(HELLO, tools=TOOLS, tool_choice="required", structured_outputs=form, seed=1, max_tokens=300)
    assert out.message["tool_calls"]
    with pytest.raises(ValueError, match="token_mask"):
        engine.chat(HELLO, tools=TOOLS, tool_choice="required", token_mask=lambda ids: None)


def test_a_mask_of_ones_own_does_not_go_with_a_form(engine):
    with pytest.raises(ValueError, match="do not go together"):
        engine.generate("x", structured_outputs={"regex": "a"}, token_mask=lambda ids: None)


TOOLS = [
    {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}
    for name, parameters in [
        ("get_weather", {"type": "object", "required": ["city", "days"], "properties": {
            "city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9}}}),
        ("now", {"type": "object", "properties": {}}),
        ("plot", {"type": "object", "required": ["points"], "$defs": {"p": {"type": "integer", "maximum": 9}},
                  "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 3}}}),
    ]
]  # fmt: skip
HELLO = [{"role": "user", "content": "Once upon a time"}]


@pytest.mark.parametrize("name", ["get_weather", "now", "plot"])
def test_a_named_tool_is_called_once(engine, name):
    reply = engine.chat(HELLO, tools=TOOLS, tool_choice={"type": "function", "function": {"name": name}}, seed=1)
    [call] = reply.message["tool_calls"]
    assert call["function"]["name"] == name and reply.outputs[0].finish_reason == "tool_calls"
    arguments = call["function"]["arguments"]
    if name == "get_weather":
        assert isinstance(arguments["city"], str) and 1 <= arguments["days"] <= 9
        assert arguments.get("unit", "C") in ("C", "F")
    if name == "plot":
        assert all(isinstance(point, int) for point in arguments["points"])


def test_required_calls_whatever_was_asked(engine):
    for seed in range(3):
        reply = engine.chat(HELLO, tools=TOOLS, tool_choice="required", seed=seed, max_tokens=400)
        assert reply.message["tool_calls"] and reply.message["content"] == ""
    with pytest.raises(ValueError, match="not declared"):
        engine.chat(HELLO, tools=TOOLS, tool_choice={"function": {"name": "fly"}})
    with pytest.raises(ValueError, match="without tools"):
        engine.chat(HELLO, tool_choice="required")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_end_soon_and_disturb_nobody(engine, name, record_property):
    alone = engine.generate("Once upon a time", max_tokens=12, temperature=0).text
    stream = engine.generate("Once upon a time", max_tokens=12, temperature=0, stream=True)
    start = time.perf_counter()
    try:
        outcome = engine.generate("x", structured_outputs=HOSTILE[name], max_tokens=20).outputs[0].finish_reason
    except ValueError as error:
        outcome = str(error)[:60]
    seconds = time.perf_counter() - start
    print(f"{name}: {seconds:.2f} s, {outcome}")
    assert "".join(chunk.delta for chunk in stream) == alone
    assert seconds < 20  # a machine that does something else besides; the figure is printed


def test_the_interpreter_ends_with_an_engine_that_is_still_open(tiny):
    code = f"import longcat; print(longcat.Engine({tiny!r}).generate('x', structured_outputs={{'regex': '[0-9]'}}))"
    held = f"import longcat; e = longcat.Engine({tiny!r}); e.generate('x', structured_outputs={{'regex': '[0-9]'}})"
    for program in (code, held):
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


def test_what_a_grammar_says_cannot_disturb_a_terminal(engine):
    with pytest.raises(ValueError) as caught:
        engine.compile_grammar({"grammar": 'start: \x1b[31m"a'})
    assert str(caught.value).isprintable()


def test_the_grammars_that_are_kept_take_a_bounded_number_of_bytes(engine, monkeypatch):
    """However long they are: a count alone let 36 grammars of 240 kB keep 3 GB."""
    from longcat.request import structured

    tokenizer = engine.tokenizer
    sizes = []
    for most, length in [(3 * structured._GRAMMAR_BYTES, 1), (3 * structured._GRAMMAR_BYTES, 60_000), (0, 1)]:
        monkeypatch.setattr(structured, "_MAX_CACHED_BYTES", most)
        compiler = structured.GrammarCompiler(lambda: tokenizer, tokenizer.vocab_size, [2])
        for number in range(5):
            compiler.compile(structured.StructuredOutputs(choice=[f"{number}" + "a" * length]))
            assert compiler._cached_bytes() <= most
        sizes.append(len(compiler._cache))
    assert sizes == [2, 0, 0]
