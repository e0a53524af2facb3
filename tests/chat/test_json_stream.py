"""JSON values in pieces, alone and as arguments of calls that are held to a grammar or cut off."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longcat.chat.json_stream import JsonStream
from longcat.chat.messages import normalize_messages
from longcat.chat.tool_stream import StreamingResponseParser
from longcat.chat.tool_text import json_text

TEXT = st.text(st.sampled_from('ab"\\/\n\té漢😅\u2028 0,:{}[]'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "order",
            "parameters": {
                "type": "object",
                "properties": {
                    "items": {"type": "array", "items": {"type": "string"}},
                    "count": {"type": "integer"},
                    "note": {"type": "string"},
                },
                "required": ["items", "count"],
            },
        },
    }
]


def call(*pairs):
    body = "".join(
        f"<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>{value}</longcat_arg_value>\n"
        for key, value in pairs
    )
    return f"<longcat_tool_call>order\n{body}</longcat_tool_call>\n"


def arguments_of(deltas):
    return "".join(delta.tool_call.arguments for delta in deltas if delta.tool_call is not None)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([(",", ":"), (", ", ": ")]), st.integers(1, 7))
def test_pieces_are_what_json_text_writes(value, is_ascii, separators, size):
    text = json.dumps(value, ensure_ascii=is_ascii, separators=separators).replace("/", "\\/")
    stream = JsonStream()
    told = "".join(stream.push(text[at : at + size]) for at in range(0, len(text), size))
    assert told + stream.finish() == json_text(value)


def test_values_of_held_calls_are_given_out_as_they_come():
    parser = StreamingResponseParser(TOOLS, fits=True)
    text = call(("items", '["one", "tw\\u006f"]'), ("count", "12"), ("note", "a\n"))
    told = [arguments_of(parser.push(char)) for char in text]
    told.append(arguments_of(parser.finish("stop")))
    [made] = parser.message["tool_calls"]
    assert "".join(told) == json_text(made["function"]["arguments"])
    assert made["function"]["arguments"] == {"items": ["one", "two"], "count": 12, "note": "a\n"}
    before = "".join(told[: text.index('"tw')])  # `count` is required, too: the call is shown once it has begun
    assert before == ""
    shown = StreamingResponseParser([{**TOOLS[0], "function": {**TOOLS[0]["function"], "parameters": {
        **TOOLS[0]["function"]["parameters"], "required": ["items"]}}}], fits=True)  # fmt: skip
    assert arguments_of(shown.push(text[: text.index('"tw') + 2])) == '{"items": ["one", "t'


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize(
    ("pairs", "cut", "arguments"),
    [
        ([("items", '["one", "two"]')], '"tw', '{"items": ["one", "tw'),
        ([("items", '["one", "two"]')], '["one"', '{"items": ["one"'),
        ([("items", "[]"), ("count", "12")], "12", '{"items": [], "count": 12'),
        ([("items", "[]"), ("count", "12")], "count", '{"items": []'),
    ],
)
def test_a_value_that_is_cut_off_keeps_its_beginning(fits, pairs, cut, arguments):
    text = call(*pairs)
    text = text[: text.index(cut) + len(cut)]
    for pieces in (list(text), [text]):
        parser = StreamingResponseParser(TOOLS, fits=fits)
        deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish("length")
        [made] = parser.message["tool_calls"]
        assert made["function"]["arguments"] == arguments_of(deltas) == arguments
    [message] = normalize_messages([parser.message])
    assert str(message["content"]).strip() == text.removesuffix("count").removesuffix("<longcat_arg_key>").strip()


def test_a_cut_value_that_is_no_json_is_a_text():
    free = [{"type": "function", "function": {"name": "order"}}]
    parser = StreamingResponseParser(free)
    deltas = parser.push(call(("note", 'say "hi"'))[: -len('"</longcat_arg_value>\n</longcat_tool_call>\n')])
    deltas += parser.finish("length")
    assert arguments_of(deltas) == '{"note": "say \\"hi'
