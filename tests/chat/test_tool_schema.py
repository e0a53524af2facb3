"""Arguments: the text stays text where the schema allows it, whole, streamed and back from history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from longcat import StreamingResponseParser, parse_model_response
from longcat.chat.template import ChatTemplate

TEXT = {"type": "string"}
NULL = {"type": "null"}
INTEGER = {"type": "integer"}
LIST = {"type": "array"}
TEMPLATE = ChatTemplate.from_checkpoint(Path(__file__).resolve().parents[2] / "examples" / "longcat-tiny")

CASES: dict[str, tuple[Any, str, Any]] = {
    "indentation": (TEXT, "    if x:\n        return 1\n", "    if x:\n        return 1\n"),
    "white space alone": (TEXT, " \n\t ", " \n\t "),
    "empty": (TEXT, "", ""),
    "digits": (TEXT, "02139", "02139"),
    "the text null": (TEXT, "null", "null"),
    "quotes": (TEXT, '"a"', '"a"'),
    "text or null": ({"anyOf": [TEXT, NULL]}, "12345", "12345"),
    "text or null, true": ({"anyOf": [TEXT, NULL]}, "true", "true"),
    "text or null, an object": ({"anyOf": [TEXT, NULL]}, '{"a": 1}', '{"a": 1}'),
    "text or null, null": ({"anyOf": [TEXT, NULL]}, "null", None),
    "text or null, nul": ({"anyOf": [TEXT, NULL]}, "nul", "nul"),
    "text or null, nulls": ({"anyOf": [TEXT, NULL]}, "nulls ", "nulls "),
    "text or null, null and space": ({"anyOf": [TEXT, NULL]}, "null ", "null "),
    "types": ({"type": ["string", "null"]}, "1e5", "1e5"),
    "types, newline": ({"type": ["null", "string"]}, "\n", "\n"),
    "types with length": ({"type": ["string", "null"], "maxLength": 2}, "[1, 2]", "[1, 2]"),
    "nested anyOf": ({"anyOf": [{"anyOf": [TEXT]}, {"oneOf": [NULL]}]}, "7", "7"),
    "enum": ({"enum": ["1", "2"]}, "1", "1"),
    "enum in white space": ({"enum": ["a", "b"]}, "\na\n", "a"),
    "enum with white space": ({"enum": [" a", "a"]}, " a", " a"),
    "enum in quotes": ({"enum": ["a", "b"]}, '"a"', "a"),
    "enum of numbers": ({"enum": [1, 2]}, "1", 1),
    "enum of both": ({"enum": ["1", 2]}, "2", 2),
    "enum with null": ({"enum": ["a", None]}, "null", None),
    "enum with the text null": ({"enum": ["null", "a"]}, "null", "null"),
    "const": ({"const": "1"}, "1", "1"),
    "const true": ({"const": True}, "true", True),
    "allOf": ({"allOf": [TEXT, {"maxLength": 9}]}, "12345", "12345"),
    "$ref": ({"$ref": "#/$defs/Z"}, "12345", "12345"),
    "$ref in allOf": ({"allOf": [{"$ref": "#/$defs/Z"}]}, "12345", "12345"),
    "$ref to a recursive one": ({"$ref": "#/$defs/Tree"}, "12", "12"),
    "text or integer": ({"type": ["string", "integer"]}, "7", "7"),
    "short text or integer": ({"anyOf": [{"type": "string", "maxLength": 2}, INTEGER]}, "1234", 1234),
    "pattern or integer": ({"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, INTEGER]}, "12", 12),
    "pattern or integer, text": ({"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, INTEGER]}, "ab", "ab"),
    "date or null": ({"anyOf": [{"type": "string", "format": "date"}, NULL]}, "2024-01-01", "2024-01-01"),
    "date or null, null": ({"anyOf": [{"type": "string", "format": "date"}, NULL]}, "null", None),
    "integer": (INTEGER, "7", 7),
    "integer in white space": (INTEGER, " 7\n", 7),
    "integer or null": ({"anyOf": [INTEGER, NULL]}, "7", 7),
    "no integer": (INTEGER, "three", "three"),
    "another number": (INTEGER, "2.5", 2.5),
    "flag of Python": ({"type": "boolean"}, "True", True),
    "object of JavaScript": ({"type": "object"}, "{a: 'b'}", {"a": "b"}),
    "list": (LIST, '["a"]', ["a"]),
    "anything": ({}, "[1]", [1]),
    "anything, text": ({"description": "d"}, " a ", " a "),
    "no schema": (True, "1", 1),
    "a schema that is none": (3, "1", 1),
    "unique items": ({"type": "array", "uniqueItems": True}, "[1]", [1]),
    "a pattern that cannot be read": ({"type": "string", "pattern": "(?=a)"}, "1", "1"),
}


def tools_of(schema: Any, **root: Any) -> list[dict[str, Any]]:
    more = {"$defs": {"Z": TEXT, "Tree": {"anyOf": [TEXT, {"type": "array", "items": {"$ref": "#/$defs/Tree"}}]}}}
    parameters = {"type": "object", "properties": {"v": schema}, **more, **root}
    return [{"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}]


def raw(text: str) -> str:
    pair = f"<longcat_arg_key>v</longcat_arg_key>\n<longcat_arg_value>{text}</longcat_arg_value>\n"
    return f"<longcat_tool_call>f\n{pair}</longcat_tool_call>\n"


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_typed_whole_and_streamed(name, required):
    schema, text, expected = CASES[name]
    tools = tools_of(schema, required=["v"] if required else [])
    [call] = parse_model_response(raw(text), tools)["tool_calls"]
    parser = StreamingResponseParser(tools)
    deltas = [delta for char in raw(text) for delta in parser.push(char)] + parser.finish()
    streamed = json.loads("".join(delta.tool_call.arguments for delta in deltas if delta.tool_call))
    for found in (call["function"]["arguments"], streamed):
        assert json.dumps(found) == json.dumps({"v": expected})


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("enum in white space", "enum in quotes")])
def test_what_was_read_is_shown_to_the_model_and_read_again(name):
    schema, text, expected = CASES[name]
    tools = tools_of(schema)
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps({"v": expected})}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    shown = TEMPLATE.render(messages, tools=tools, add_generation_prompt=False)
    shown = (
        shown[shown.rindex("<longcat_assistant>") :].removeprefix("<longcat_assistant>").removesuffix("</longcat_s>")
    )
    [again] = parse_model_response(shown, tools)["tool_calls"]
    assert json.dumps(again["function"]["arguments"]) == json.dumps({"v": expected})


def test_what_is_required_at_the_root():
    v, w = raw("1"), raw("1").replace("arg_key>v<", "arg_key>w<")
    both = v.replace("</longcat_tool_call>\n", "") + w.replace("<longcat_tool_call>f\n", "")
    for root, complete, not_complete in [
        ({"required": ["v"]}, [v, both], [w]),
        ({"allOf": [{"required": ["w"]}]}, [w, both], [v]),
        ({"anyOf": [{"required": ["v"]}, {"required": ["w"]}]}, [v, w], ["<longcat_tool_call>f\n</longcat_tool_call>"]),
        ({"dependentRequired": {"v": ["w"]}}, [w, both], [v]),
        ({"$ref": "#/$defs/R", "$defs": {"R": {"required": ["w"]}}}, [w, both], [v]),
        ({"required": "v"}, [v, w], []),
    ]:
        tools = tools_of(INTEGER, **root)
        for text in complete:
            assert "tool_calls" in parse_model_response(text, tools), (root, text)
        for text in not_complete:
            assert parse_model_response(text, tools) == {"role": "assistant", "content": text.strip()}, (root, text)


def test_texts_arrive_as_they_come():
    for schema in (TEXT, {"anyOf": [TEXT, NULL]}, {"type": "string", "maxLength": 3}, {"$ref": "#/$defs/Z"}):
        parser = StreamingResponseParser(tools_of(schema))
        parser.push(raw("").partition("</longcat_arg_value>")[0] + "nu")
        text = "".join(delta.tool_call.arguments for char in "mber" for delta in parser.push(char) if delta.tool_call)
        assert text.endswith("mber"), schema
