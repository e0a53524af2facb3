"""Prompts that end inside a think block: the completion begins with reasoning, and no tag opens it."""

import shutil
from pathlib import Path

import longcat
import pytest
from longcat.chat.reader import ChatReader, ends_in_think
from longcat.chat.tool_stream import StreamingResponseParser
from longcat.request.outputs import StreamChunk

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = "<longcat_tool_call>add\n</longcat_tool_call>"
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {}}}]

# What a completion becomes: with tools, and without.
CASES = {
    "reasoning\n</longcat_think>\nanswer": [{"reasoning_content": "reasoning", "content": "answer"}] * 2,
    "all of it reasons, to the end": [{"reasoning_content": "all of it reasons, to the end"}] * 2,
    "</longcat_think>answer": [{"content": "answer"}] * 2,
    "a <longcat_x> b</longcat_think> c </longcat_think> d": [
        {"reasoning_content": "a <longcat_x> b", "content": "c </longcat_think> d"}
    ] * 2,
    f"let me</longcat_think>{CALL}": [
        {"reasoning_content": "let me", "tool_calls": CALLS},
        {"reasoning_content": "let me", "content": CALL},
    ],
    f"let me</longcat_think>So:{CALL}": [
        {"reasoning_content": "let me", "content": "So:", "tool_calls": CALLS},
        {"reasoning_content": "let me", "content": f"So:{CALL}"},
    ],
    f"not yet {CALL}": [{"reasoning_content": f"not yet {CALL}"}] * 2,
}  # fmt: skip


@pytest.mark.parametrize("tools", [TOOLS, None], ids=["tools", "none"])
@pytest.mark.parametrize("text", CASES)
def test_messages(text, tools):
    """However the text is cut, and deltas fold to the message."""
    expected = {"role": "assistant", **CASES[text][0 if tools else 1]}
    for size in (1, 2, 5, len(text)):
        parser = StreamingResponseParser(
            tools, hold_after_think=False, starts_thinking=True, reads_calls=tools is not None
        )
        deltas = [delta for at in range(0, len(text), size) for delta in parser.push(text[at : at + size])]
        deltas += parser.finish("stop")
        assert parser.message == expected
        assert "".join(delta.reasoning_content for delta in deltas) == expected.get("reasoning_content", "")
        assert "".join(delta.content for delta in deltas) == expected.get("content", "")


def test_content_is_given_out_as_it_comes():
    reader = ChatReader(TOOLS, starts_thinking=[True])
    chunks = [reader.read(StreamChunk(text, [1])) for text in ("why", "</longcat_think>", "be", "cause")]
    assert [(chunk.reasoning_delta, chunk.delta) for chunk in chunks] == [
        ("why", ""),
        ("", ""),
        ("", "be"),
        ("", "cause"),
    ]


def test_each_prompt_for_itself():
    reader = ChatReader(None, starts_thinking=[False, True])
    found = [reader.read(StreamChunk("text", [1], prompt_index=i)) for i in range(3)]
    assert [(chunk.reasoning_delta, chunk.delta) for chunk in found] == [("", "text"), ("text", ""), ("", "text")]


def test_ends_in_think():
    assert ends_in_think("<longcat_assistant><longcat_think>\n")
    assert not ends_in_think("<longcat_assistant><longcat_think>\n</longcat_think>\n")
    assert not ends_in_think("<longcat_think> first")


TEMPLATE = (
    "{% for m in messages %}<longcat_user>{{ m.content }}{% endfor %}"
    "{% if enable_thinking is not none %} /think_on <longcat_assistant><longcat_think>\n"
    "{% else %}<longcat_assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def thinking(tiny, tmp_path_factory):
    """The small checkpoint with a template of its own, which thinks unless enable_thinking is null."""
    folder = tmp_path_factory.mktemp("thinking") / "model"
    shutil.copytree(tiny, folder)
    for name in ("chat_template.jinja", "chat_template.json"):
        Path(folder, name).unlink(missing_ok=True)
    Path(folder, "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_the_folders_template_decides(thinking):
    messages = [{"role": "user", "content": "Once upon a time"}]
    with longcat.Engine(thinking, kv_cache_memory="4MiB", num_threads=1) as engine:
        options = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
        for variables, field in [
            ({"enable_thinking": True}, "reasoning_content"),
            ({"enable_thinking": None}, "content"),
        ]:
            message = engine.chat(messages, chat_template_kwargs=variables, **options).message
            other = {"content": "reasoning_content", "reasoning_content": "content"}[field]
            assert message[field] and not message.get(other)
        form = {"regex": "[a-z]{3}"}  # an answer that is held to a form has no think block
        held = engine.chat(messages, chat_template_kwargs={"enable_thinking": True}, structured_outputs=form, **options)
        assert len(held.message["content"]) == 3 and "reasoning_content" not in held.message
