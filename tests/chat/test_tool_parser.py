"""parse_model_response and its streaming twin: the format's worked rows, variants, and thousands of broken answers."""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

import pytest
from longcat.chat.tool_parser import parse_model_response
from longcat.chat.tool_stream import Delta, StreamingResponseParser

from support.response_cases import TAGS, TOOLS, random_pieces, random_response, well_formed_response

_NUM_RESPONSES = 10_000 if os.environ.get("LONGCAT_THOROUGH") == "1" else 2_000


def pair(key: str, value: str) -> str:
    return f"<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>{value}</longcat_arg_value>\n"


def call(name: str, *pairs: tuple[str, str]) -> str:
    return f"<longcat_tool_call>{name}\n{''.join(pair(*p) for p in pairs)}</longcat_tool_call>"


def message(content: str = "", *calls: tuple[str, dict[str, Any]], reasoning: str = "") -> dict[str, Any]:
    expected: dict[str, Any] = {"role": "assistant"}
    if reasoning:
        expected["reasoning_content"] = reasoning
    if content:
        expected["content"] = content
    if calls:
        expected["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return expected


def fold(deltas: list[Delta]) -> dict[str, Any]:
    """The message that a listener puts together from the deltas, by their documented rules."""
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning_content for delta in deltas)
    calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        assert bool(delta.content) + bool(delta.reasoning_content) + (delta.tool_call is not None) == 1
        news = delta.tool_call
        if news is None:
            continue
        if news.dropped:
            del calls[news.index]
        elif news.name is not None:
            assert news.index == len(calls)
            calls[news.index] = (news.name, news.arguments)
        else:
            name, arguments = calls[news.index]
            calls[news.index] = (name, arguments + news.arguments)
    assert list(calls) == list(range(len(calls)))
    return message(content, *[(name, json.loads(text)) for name, text in calls.values()], reasoning=reasoning)


def stream(pieces, tools=TOOLS, **options: Any) -> tuple[list[Delta], dict[str, Any]]:
    parser = StreamingResponseParser(tools, **options)
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    deltas += parser.finish()
    assert parser.push("") == [] and parser.finish() == []
    return deltas, parser.message


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal, the order of keys and the types of numbers included."""
    return json.dumps(a) == json.dumps(b)


# --- the worked rows -----------------------------------------------------------------------------------------------

ROWS = {
    "text": ("Hello there.\n", message("Hello there.")),
    "one call": (
        "I'll add." + call("func_add", ("x1", "125679"), ("x2", "2.5")) + "\n",
        message("I'll add.", ("func_add", {"x1": 125679, "x2": 2.5})),
    ),
    "two calls": (
        call("find", ("q", "123"), ("n", "3"), ("f", '{"a": [1, null]}'), ("ok", "true"))
        + "\n"
        + call("func_add", ("x1", "1")),
        message("", ("find", {"q": "123", "n": 3, "f": {"a": [1, None]}, "ok": True}), ("func_add", {"x1": 1})),
    ),
    "thinking": (
        "\n<longcat_think>\nplan\n</longcat_think>\nOK" + call("find", ("n", "three"), ("zz", "[1]")),
        message("OK", ("find", {"n": "three", "zz": [1]}), reasoning="plan"),
    ),
    "cut off": (
        "text <longcat_tool_call>find\n<longcat_arg_key>q</longcat_arg_key>\n<longcat_arg_value>abc",
        message("text <longcat_tool_call>find\n<longcat_arg_key>q</longcat_arg_key>\n<longcat_arg_value>abc"),
    ),
    "empty": ("", message()),
    "no arguments": (call("find"), message("", ("find", {}))),
    "name ends at a tag": (
        "<longcat_tool_call>find<longcat_arg_key>q</longcat_arg_key><longcat_arg_value> a </longcat_arg_value>"
        "</longcat_tool_call>",
        message("", ("find", {"q": " a "})),
    ),
    "no name": ("a" + call(""), message("a" + call(""))),
    "name on the next line": ("a<longcat_tool_call>\nfind\n</longcat_tool_call>", message("a", ("find", {}))),
    "doubled key": (call("find", ("q", "a"), ("n", "1"), ("q", "b")), message("", ("find", {"q": "b", "n": 1}))),
    "doubled key, other types": (call("g", ("q", "a"), ("q", "[1]")), message("", ("g", {"q": [1]}))),
    "text between and after": (
        "a" + call("find") + "b" + call("func_add", ("x1", "1")) + "c",
        message("a", ("find", {}), ("func_add", {"x1": 1})),
    ),
    "a call without what is required": (
        "a" + call("find") + "b" + call("func_add", ("x2", "1")) + "c" + call("find"),
        message("a" + call("func_add", ("x2", "1")), ("find", {}), ("find", {})),
    ),
    "no number": (
        call("func_add", ("x1", "NaN"), ("x2", "1e999")),
        message("", ("func_add", {"x1": "NaN", "x2": "1e999"})),
    ),
    "unclosed think": ("<longcat_think> a " + call("find"), message(reasoning="a " + call("find"))),
    "two think ends": (
        "<longcat_think>a</longcat_think>b</longcat_think> c",
        message("c", reasoning="a</longcat_think>b"),
    ),
    "think later": ("a <longcat_think>b</longcat_think>", message("a <longcat_think>b</longcat_think>")),
    "end tag in a string": (
        "<longcat_tool_call>find\n"
        + pair("n", "1")
        + "<longcat_arg_key>q</longcat_arg_key><longcat_arg_value>say </longcat_tool_call>"
        " x</longcat_arg_value></longcat_tool_call>",
        message("", ("find", {"n": 1, "q": "say </longcat_tool_call> x"})),
    ),
    "part of a tag": ("a <longcat_tool_", message("a <longcat_tool_")),
}


def kept(text: str) -> tuple[str, dict[str, Any]]:
    """A text that is no call, and stays."""
    return text, message(text.strip())


VARIANTS = {
    "no end tag": ("a<longcat_tool_call>find\n" + pair("q", "b"), message("a", ("find", {"q": "b"}))),
    "no end tag, a required argument missing": kept("a<longcat_tool_call>func_add\n" + pair("x2", "1")),
    "no end tag, no arguments": kept("a<longcat_tool_call>find\n"),
    "no end tag, more begun": kept("<longcat_tool_call>find\n" + pair("q", "b") + "<longcat_arg_key>"),
    "no end tag, text in between": kept("<longcat_tool_call>find\nso:" + pair("q", "b")),
    "a name alone": kept("<longcat_tool_call>find"),
    "a tag alone": kept("<longcat_tool_call>"),
    "functions. prefix": (call("functions.find", ("q", "1")), message("", ("find", {"q": "1"}))),
    "json": (
        'a<longcat_tool_call>{"name": "find", "arguments": {"q": "1", "n": 2}}</longcat_tool_call>',
        message("a", ("find", {"q": "1", "n": 2})),
    ),
    "json on lines of its own": (
        '<longcat_tool_call>\n{"name": "functions.find", "arguments": "{\\"q\\": 1}"}\n</longcat_tool_call>',
        message("", ("find", {"q": 1})),
    ),
    "json, no end tag": ('<longcat_tool_call>{"name": "g", "arguments": {}}', message("", ("g", {}))),
    "json, cut off": kept('b<longcat_tool_call>{"name": "g", "arguments": {"a": 1'),
    "json of something else": kept("b<longcat_tool_call>{1}</longcat_tool_call>"),
    "json without what is required": kept(
        '<longcat_tool_call>{"name": "func_add", "arguments": {}}</longcat_tool_call>'
    ),
    "words": kept("<longcat_tool_call>I would call find now</longcat_tool_call>"),
    "words on lines": kept("<longcat_tool_call>find\ncity is Paris\n</longcat_tool_call>"),
    "an argument without a value": kept(
        "<longcat_tool_call>find\n<longcat_arg_key>q</longcat_arg_key></longcat_tool_call>"
    ),
    "parentheses": (
        "<longcat_tool_call>func_add({x1: 1, 'x2': [\"a\", undefined,],})</longcat_tool_call>",
        message("", ("func_add", {"x1": 1, "x2": ["a", None]})),
    ),
    "parentheses, quotes": (
        "<longcat_tool_call>functions.find({q: 'it\\'s \"so\"'});</longcat_tool_call>",
        message("", ("find", {"q": 'it\'s "so"'})),
    ),
    "parentheses, no end tag": ('<longcat_tool_call>func_add({"x1": 2})', message("", ("func_add", {"x1": 2}))),
    "json after key": (
        '<longcat_tool_call>find\n<longcat_arg_key>{"q": "x", "n": 3}\n</longcat_tool_call>',
        message("", ("find", {"q": "x", "n": 3})),
    ),
    "json in a key": (
        '<longcat_tool_call>find\n<longcat_arg_key>{"n": 3}</longcat_arg_key>\n</longcat_tool_call>',
        message("", ("find", {"n": 3})),
    ),
    "json after key, no end tag": (
        '<longcat_tool_call>find\n<longcat_arg_key>{"n": 3}',
        message("", ("find", {"n": 3})),
    ),
}

# JSON under several keys, and other frames, for one call of find with q="a" and n=1.
FOUND = message("", ("find", {"q": "a", "n": 1}))
WILD = {
    f"<longcat_tool_call>{body}</longcat_tool_call>": FOUND
    for body in [
        '{"name": "find", "parameters": {"q": "a", "n": 1}}',
        '{"name": "find", "args": {"q": "a", "n": 1}}',
        '{"name": "find", "input": {"q": "a", "n": 1}}',
        '{"function": "find", "arguments": {"q": "a", "n": 1}}',
        '{"tool": "find", "params": {"q": "a", "n": 1}}',
        '{"tool_name": "find", "tool_args": {"q": "a", "n": 1}}',
        '{"action": "find", "action_input": "{\\"q\\": \\"a\\", \\"n\\": 1}"}',
        '{"type": "function", "function": {"name": "find", "arguments": {"q": "a", "n": 1}}}',
        '{"id": "call_1", "type": "function", "name": "find", "q": "a", "n": 1}',
        '{"tool_calls": [{"name": "find", "arguments": {"q": "a", "n": 1}}]}',
        '{"find": {"q": "a", "n": 1}}',
        '[{"name": "find", "arguments": {"q": "a", "n": 1}}]',
        '```json\n{"name": "find", "arguments": {"q": "a", "n": 1}}\n```',
        '\n  {"name": "find", "arguments": {"q": "a", "n": 1}}  \n',
        'find\n{"q": "a", "n": 1}\n',
        'find {"q": "a", "n": 1}',
        'find\n```json\n{"q": "a", "n": 1}\n```\n',
        'find({"q": "a", "n": 1})',
        'find(q="a", n=1)',
        "functions.find(q='a', n=1);",
        " \n find \n\n" + pair("q", "a") + "  \n" + pair("n", " 1 ") + "\n ",
        "find\n<longcat_arg_key> q </longcat_arg_key>  <longcat_arg_value>a</longcat_arg_value>" + pair("n", "1"),
        "find\n<longcat_arg_key>q<longcat_arg_value>a</longcat_arg_value>\n" + pair("n", "1"),
        "find\n<longcat_arg_key>q</longcat_arg_key>\na</longcat_arg_value>\n" + pair("n", "1"),
        "find\n<longcat_arg_key>q</longcat_arg_key>\n<longcat_arg_value>a\n" + pair("n", "1"),
        "find\n" + pair("q", "a") + "<longcat_arg_key>n</longcat_arg_key>\n<longcat_arg_value>1\n",
        "find\n" + pair("q", "a") + "<longcat_arg_key>n</longcat_arg_key>\n1\n",
        (pair("q", "a") + pair("n", "1")).replace("longcat_", "").join(["find\n", ""]),
        "<function=find>\n<parameter=q>\na\n</parameter>\n<parameter=n>\n1\n</parameter>\n</function>",
    ]
}
VARIANTS |= {f"wild: {text}": (text, expected) for text, expected in WILD.items()}
VARIANTS |= {
    "two without their end tags": (
        "<longcat_tool_call>find\n" + pair("q", "a") + "<longcat_tool_call>find\n" + pair("q", "b"),
        message("", ("find", {"q": "a"}), ("find", {"q": "b"})),
    ),
    "a value and a call without their end tags": (
        "<longcat_tool_call>find\n<longcat_arg_key>q</longcat_arg_key>\n<longcat_arg_value>a\n</longcat_tool_call>\n"
        + call("find", ("q", "b")),
        message("", ("find", {"q": "a"}), ("find", {"q": "b"})),
    ),
    "tags as text of a value": (
        call("find", ("q", "a <longcat_arg_key> b <longcat_tool_call> c </longcat_arg_key> d </longcat_tool_call> e")),
        message(
            "",
            ("find", {"q": "a <longcat_arg_key> b <longcat_tool_call> c </longcat_arg_key> d </longcat_tool_call> e"}),
        ),
    ),
    "other tags outside": kept('<tool_call>{"name": "find", "arguments": {}}</tool_call>'),
    "half a tag": kept("<longcat_tool_call find\n" + pair("q", "a") + "</longcat_tool_call>"),
}

CASES = ROWS | VARIANTS


@pytest.mark.parametrize("name", CASES)
def test_whole(name: str):
    response, expected = CASES[name]
    assert same(parse_model_response(response, TOOLS), expected)


@pytest.mark.parametrize("name", CASES)
def test_by_character(name: str):
    response, expected = CASES[name]
    deltas, built = stream(response)
    assert same(built, expected)
    assert fold(deltas) == expected


def test_tools_both_shapes_or_none():
    flat = [tool.get("function", tool) for tool in TOOLS]
    nested = [{"type": "function", "function": tool} for tool in flat]
    response = call("find", ("q", "123"), ("n", "3"))
    for tools in (flat, nested):
        assert parse_model_response(response, tools) == message("", ("find", {"q": "123", "n": 3}))
    for tools in (None, [], [{"type": "function"}], [{"name": "find", "parameters": None}]):
        assert parse_model_response(response, tools) == message("", ("find", {"q": 123, "n": 3}))


def test_declared_name_keeps_its_prefix():
    tools = [{"name": "functions.find", "parameters": {"properties": {"q": {"type": "string"}}}}]
    assert parse_model_response(call("functions.find", ("q", "1")), tools) == message(
        "", ("functions.find", {"q": "1"})
    )


# --- the published algorithm, written out --------------------------------------------------------------------------


def published_algorithm(response: str) -> dict[str, Any]:
    """The algorithm in regular expressions, without the variants. Only for answers whose tags are in order."""
    reasoning, text = "", response.strip()
    if text.startswith("<longcat_think>"):
        before, end, after = text.rpartition("</longcat_think>")
        reasoning, text = (before, after) if end else (text, "")
        reasoning = reasoning.removeprefix("<longcat_think>").strip()
    types = {("find", "q"): "string"}
    calls = []
    for body in re.findall(r"<longcat_tool_call>(.*?)</longcat_tool_call>", text, re.DOTALL):
        name = re.match(r"[^\n<]*", body)[0].strip()
        arguments = {}
        for key, value in re.findall(
            r"<longcat_arg_key>(.*?)</longcat_arg_key>\s*<longcat_arg_value>(.*?)</longcat_arg_value>", body, re.DOTALL
        ):
            key = key.strip()
            if (name, key) == ("find", "f") and value.strip() == "{'a': 1}":
                value = {"a": 1}  # Python's, which fits where an object is wanted
            elif types.get((name, key)) != "string":
                try:
                    parsed = json.loads(value.strip())
                    json.dumps(parsed, allow_nan=False)
                    value = parsed if value.count("[") < 100 else value
                except (ValueError, RecursionError):
                    pass
            arguments[key] = value
        if name:
            calls.append((name, arguments))
    return message(text.split("<longcat_tool_call>")[0].strip(), *calls, reasoning=reasoning)


def test_whole_parse_is_the_published_algorithm():
    """But for white space of texts, and for calls that have no name or lack an argument: those are content here."""
    num_compared = 0
    for seed in range(2500):
        response = well_formed_response(seed)
        expected = published_algorithm(response)
        calls = [call["function"] for call in expected.get("tool_calls", ())]
        if len(calls) == response.count("<longcat_tool_call>") and all(
            call["name"] != "func_add" or "x1" in call["arguments"] for call in calls
        ):
            assert same(parse_model_response(response, TOOLS), expected), (seed, response)
            num_compared += bool(calls)
    assert num_compared > 400


# --- streamed equals whole -----------------------------------------------------------------------------------------


def test_streamed_is_whole_on_generated_responses():
    num_calls = num_reasoning = num_content = num_dropped = 0
    for seed in range(_NUM_RESPONSES):
        response = random_response(seed)
        whole = parse_model_response(response, TOOLS)
        for pieces in (response, random_pieces(response, seed)):
            deltas, built = stream(pieces)
            assert same(built, whole), (seed, response)
            assert fold(deltas) == whole, (seed, response)
        num_calls += len(whole.get("tool_calls", ()))
        num_reasoning += "reasoning_content" in whole
        num_content += "content" in whole
        num_dropped += any(delta.tool_call and delta.tool_call.dropped for delta in deltas)
    # The generator covers what it is for.
    assert min(num_calls, num_content) > 0.3 * _NUM_RESPONSES
    assert num_reasoning > 0.1 * _NUM_RESPONSES and num_dropped > 0.003 * _NUM_RESPONSES


def test_first_think_end_streams_and_counts():
    options: dict[str, Any] = {"hold_after_think": False}
    deltas, built = stream("<longcat_think>a</longcat_think>b</longcat_think> c", **options)
    assert built == fold(deltas) == message("b</longcat_think> c", reasoning="a")
    for seed in range(400):
        response = random_response(seed)
        if response.count("</longcat_think>") < 2:
            whole = parse_model_response(response, TOOLS)
            deltas, built = stream(response, **options)
            assert same(built, whole) and fold(deltas) == whole, (seed, response)


# --- what arrives when ---------------------------------------------------------------------------------------------


def test_content_arrives_without_parts_of_tags():
    parser = StreamingResponseParser(TOOLS)
    seen = ""
    for char in "Hi <b> " + call("find", ("q", "x")):
        seen += "".join(delta.content for delta in parser.push(char))
        assert "Hi <b>".startswith(seen)
    assert seen == "Hi <b>"


def test_string_arguments_arrive_by_character():
    parser = StreamingResponseParser(TOOLS)
    parser.push("<longcat_tool_call>find\n<longcat_arg_key>q</longcat_arg_key>\n<longcat_arg_value>")
    text = [delta.tool_call.arguments for char in 'a"é' for delta in parser.push(char)]
    assert text == ["a", '\\"', "é"]
    assert [delta.tool_call.arguments for delta in parser.push("</longcat_arg_value>")] == ['"']


def test_other_arguments_arrive_complete():
    parser = StreamingResponseParser(TOOLS)
    first = parser.push("<longcat_tool_call>func_add\n<longcat_arg_key>x1</longcat_arg_key>\n<longcat_arg_value>12")
    assert first == []  # the call may still turn out to lack what it needs
    news = [delta.tool_call for delta in parser.push("5</longcat_arg_value>")]
    assert [one.name for one in news] == ["func_add", None] and news[1].arguments == '{"x1": 125'


def test_call_cut_off_is_dropped():
    deltas, built = stream(ROWS["cut off"][0])
    assert deltas[-2].tool_call is not None and deltas[-2].tool_call.dropped
    assert built == fold(deltas) == ROWS["cut off"][1]


def test_call_cut_off_stays_where_an_end_tells():
    for text, reason, arguments in [
        (ROWS["cut off"][0], "length", '{"q": "abc'),
        (ROWS["cut off"][0], "stop", '{"q": "abc'),  # it was given out
        ("<longcat_tool_call>func_add\n" + pair("x2", "1"), "length", '{"x2": 1'),
        ("<longcat_tool_call>func_add\n", "abort", "{"),
        ("<longcat_tool_call>find\n" + pair("q", "b"), "length", '{"q": "b"'),  # more might have followed
    ]:
        parser = StreamingResponseParser(TOOLS)
        deltas = [*(delta for char in text for delta in parser.push(char)), *parser.finish(reason)]
        [one] = parser.message["tool_calls"]
        assert one["function"]["arguments"] == arguments
        assert "".join(delta.tool_call.arguments for delta in deltas if delta.tool_call) == arguments
    parser = StreamingResponseParser(TOOLS)
    assert parser.push("<longcat_tool_call>func_add\n" + pair("x2", "1")) == []
    parser.finish("stop")
    assert "tool_calls" not in parser.message and "func_add" in parser.message["content"]


def test_nothing_vanishes():
    """An answer with any call in it leaves a call or a content; no call lacks what its schema requires."""
    for seed in range(1000):
        response = random_response(seed)
        for reason in (None, "stop", "length"):
            parser = StreamingResponseParser(TOOLS)
            parser.push(response)
            parser.finish(reason)
            built = parser.message
            if "<longcat_tool_call>" in response:
                assert len(built) > 1, response
            for one in built.get("tool_calls", ()):
                name, arguments = one["function"]["name"], one["function"]["arguments"]
                if isinstance(arguments, str):
                    assert reason is not None
                elif name == "func_add":
                    assert "x1" in arguments, response


def test_argument_text_can_be_sent():
    """What a JSON escape smuggles in (a lone surrogate) stays escaped."""
    for response in (call("g", ("a", '"\\ud800"')), '<longcat_tool_call>{"name": "g", "arguments": {"a": "\\ud800"}}'):
        deltas, _ = stream(response)
        "".join(delta.tool_call.arguments for delta in deltas).encode()


@pytest.mark.parametrize(
    "unit", [*TAGS, "".join(TAGS), "<longcat_arg_key>a</longcat_arg_key><longcat_arg_value>", " ", "<", "(", "f( )"]
)
@pytest.mark.parametrize(
    "start", ["", "<longcat_tool_call>f\n", "<longcat_tool_call>f(", "<longcat_tool_call>{", "<longcat_think>"]
)
def test_time_is_linear_in_length(start: str, unit: str):
    response = start + unit * (200_000 // len(unit))
    begin = time.process_time()
    parse_model_response(response, TOOLS)
    stream([response])
    assert time.process_time() - begin < 2
