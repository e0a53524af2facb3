"""/v1/messages: what a body says in the words of chat, the events of a stream, and Anthropic's shape of errors."""

import asyncio
import json

import httpx
import pytest
from longcat.chat.reader import ChatChunk, ChatOutput
from longcat.chat.tool_stream import ToolCallDelta
from longcat.request.outputs import CompletionOutput, RequestMetrics
from longcat.server.api.messages.answer import MessagesAnswer
from longcat.server.api.messages.body import MessagesRequest
from longcat.server.api.parts import Parts
from longcat.server.api.protocol import ChatRequest
from longcat.server.http.errors import ApiError

USER = {"role": "user", "content": "Hi"}
STORY = [{"role": "user", "content": "Tell me a story about a dog."}]
PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "name": "get_weather",
    "description": "Get the weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
FUNCTION = {"name": "get_weather", "description": WEATHER["description"], "parameters": WEATHER["input_schema"]}
AS_CHAT = {"type": "function", "function": FUNCTION}
ONE_CALL = {"type": "any", "disable_parallel_tool_use": True}


def text(value):
    return {"type": "text", "text": value}


# --- bodies --------------------------------------------------------------------------------------------------------


def user(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def past(*blocks):
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}, USER]}


CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
CALL_AS_CHAT = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
BILLING = "x-anthropic-billing-header: cc_version=2.1.1.abc; cc_entrypoint=cli; cch=0f3e1;"


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"messages": [USER]}, [USER]),
        (user(text("a"), text("b")), [{"role": "user", "content": "a\nb"}]),
        ({"messages": [USER], "system": "S"}, [{"role": "system", "content": "S"}, USER]),
        ({"messages": [USER], "system": [text("S"), text("T")]}, [{"role": "system", "content": "S\nT"}, USER]),
        ({"messages": [USER], "system": [text(BILLING), text("S")]}, [{"role": "system", "content": "S"}, USER]),
        ({"messages": [USER], "system": f"{BILLING}\nS"}, [{"role": "system", "content": "S"}, USER]),
        ({"messages": [USER], "system": [text(BILLING)]}, [USER]),
        ({"messages": [USER], "system": f"S\n{BILLING}"}, [{"role": "system", "content": f"S\n{BILLING}"}, USER]),
        ({"messages": [USER, {"role": "system", "content": "S"}]}, [USER, {"role": "system", "content": "S"}]),
        (
            past(text("a"), text("b"), CALL),
            [USER, {"role": "assistant", "content": "ab", "tool_calls": [CALL_AS_CHAT]}, USER],
        ),
        (
            past({"type": "thinking", "thinking": "T", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}),
            [USER, {"role": "assistant", "content": "", "reasoning_content": "T"}, USER],
        ),
        (
            user({"type": "tool_result", "tool_use_id": "t1", "content": "21"}, text("go on")),
            [{"role": "tool", "tool_call_id": "t1", "content": "21"}, {"role": "user", "content": "go on"}],
        ),
        (
            user({"type": "tool_result", "tool_use_id": "t1", "content": [text("a"), text("b")], "is_error": True}),
            [{"role": "tool", "tool_call_id": "t1", "content": "Error: a\nb"}],
        ),
        (user({"type": "tool_result", "tool_use_id": "t1"}), [{"role": "tool", "tool_call_id": "t1", "content": ""}]),
    ],
)  # fmt: skip
def test_messages_in_the_words_of_chat(given, messages):
    assert MessagesRequest(max_tokens=1, **given).as_chat().messages == messages


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stop_sequences": ["a"], "top_k": 3, "seed": 5}, {"stop": ["a"], "top_k": 3, "seed": 5, "max_tokens": 7}),
        ({"tools": [WEATHER]}, {"tools": [AS_CHAT], "tool_choice": None, "parallel_tool_calls": True}),
        ({"tools": [WEATHER | {"type": "custom", "cache_control": {"type": "ephemeral"}}]}, {"tools": [AS_CHAT]}),
        ({"tools": [WEATHER], "tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tools": [WEATHER], "tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        ({"tools": [WEATHER], "tool_choice": ONE_CALL}, {"tool_choice": "required", "parallel_tool_calls": False}),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "get_weather"}},
            {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        ),
        ({"thinking": {"type": "adaptive"}}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "Once"}]},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
    ],
)  # fmt: skip
def test_fields_in_the_words_of_chat(given, expected):
    chat = MessagesRequest(**{"max_tokens": 7, "messages": [USER], **given}).as_chat()
    assert {name: getattr(chat, name) for name in expected} == expected


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (user(IMAGE), 'messages[0].content[0] is of type "image"; expected text'),
        (user({"type": "tool_result", "content": [IMAGE]}), 'messages[0].content[0].content[0] is of type "image"'),
        (user({"type": "document", "source": {}}), 'is of type "document"; expected text'),
        (user("a"), 'messages[0].content[0] is "a"; expected a block'),
        (user({"type": "text"}), "messages[0].content[0].text is null; expected a text"),
        (user({"type": "tool_result", "content": 5}), "messages[0].content[0].content is 5; expected a text or a list"),
        (past(CALL | {"input": "x"}), 'messages[1].content[0].input is "x"; expected an object'),
        (past({"type": "server_tool_use"}), 'is of type "server_tool_use"'),
        ({"messages": [{"role": "tool", "content": "x"}]}, 'messages[0].role is "tool"; expected user or assistant'),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content is null; expected a text or a list"),
        ({"messages": [{"role": "system", "content": []}]}, "messages has no text"),
        ({"system": [IMAGE]}, 'system[0] is of type "image"'),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, 'tools[0] is of type "web_search_20250305", which'),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name is null; expected a text"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice is an object of 1 fields; expected"),
        ({"thinking": {"type": "often"}}, 'thinking.type is "often"; expected enabled or adaptive'),
        ({"output_format": {"type": "xml"}}, "output_config.format is an object"),
    ],
)  # fmt: skip
def test_what_chat_cannot_say_is_refused_by_its_place(given, words):
    body = MessagesRequest(**{"max_tokens": 1, "messages": [USER], **given})
    with pytest.raises(ValueError) as caught:
        body.as_chat()
    said = str(caught.value)
    assert said.startswith("[request] ") and words in said and said.endswith(".") and "\n" not in said


# --- parts ---------------------------------------------------------------------------------------------------------


def test_parts_come_in_their_order_and_end():
    parts = Parts()
    told = []
    for chunk in (
        ChatChunk(reasoning_delta="think", token_ids=[1]),
        ChatChunk(delta="a", token_ids=[2]),
        ChatChunk(delta="b", tool_calls=[ToolCallDelta(0, "f", '{"x": '), ToolCallDelta(0, arguments="1}")]),
        ChatChunk(tool_calls=[ToolCallDelta(1, "g", "{")]),
        ChatChunk(delta="c"),
        ChatChunk(finish_reason="length"),
    ):
        told += [(step, part.index, text) for step, part, text in parts.take(chunk)]
    assert [(part.kind, part.name, part.text) for part in parts] == [
        ("reasoning", "", "think"), ("text", "", "ab"), ("call", "f", '{"x": 1}'), ("call", "g", "{"), ("text", "", "c")
    ]  # fmt: skip
    assert [index for step, index, _ in told if step == "begin"] == [0, 1, 2, 3, 4]
    assert [index for step, index, _ in told if step == "end"] == [0, 1, 2, 3, 4]
    for part in parts:
        assert "".join(text for step, index, text in told if step == "add" and index == part.index) == part.text
    assert parts.num_reasoning == 1 and parts[-1].is_cut


# --- over HTTP -----------------------------------------------------------------------------------------------------


def post(server, path="/v1/messages", **body):
    body = {"messages": STORY, "max_tokens": 12, "temperature": 0, **body}
    return httpx.post(server.url + path, json=body, timeout=60)


def events_of(response):
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    events = []
    for frame in response.text.split("\n\n"):
        lines = [line for line in frame.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


def fold(events):
    """What a client puts together, with the rules of Anthropic's own."""
    assert [events[0]["type"], events[1]["type"]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    message, content, is_open = events[0]["message"], [], False
    assert message["content"] == [] and message["stop_reason"] is None
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(content)
            content.append({**event["content_block"], "json": ""})
            is_open = True
            continue
        assert is_open and event["index"] == len(content) - 1
        if event["type"] == "content_block_stop":
            is_open = False
            continue
        delta = dict(event["delta"])
        name = {"input_json_delta": "json"}.get(delta.pop("type"))
        [(key, value)] = delta.items()
        content[-1][name or key] += value
    assert not is_open
    for block in content:
        arguments = block.pop("json")
        if block["type"] == "tool_use" and message_ended(events) == "tool_use":
            block["input"] = json.loads(arguments)
    return message | {"content": content} | events[-2]["delta"] | {"usage": events[-2]["usage"]}


def message_ended(events):
    return events[-2]["delta"]["stop_reason"]


CASES = {
    "text": {},
    "stop": {"stop_sequences": ["girl"], "max_tokens": 40},
    "call": {"messages": PARIS, "tools": [WEATHER], "max_tokens": 60},
    "forced": {"messages": PARIS, "tools": [WEATHER], "tool_choice": ONE_CALL, "max_tokens": 60},
    "cut call": {"messages": PARIS, "tools": [WEATHER], "tool_choice": ONE_CALL, "max_tokens": 9},
    "none": {"messages": PARIS, "tools": [WEATHER], "tool_choice": {"type": "none"}},
    "form": {"output_config": {"format": {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}}},
    "prefill": {"messages": [*STORY, {"role": "assistant", "content": "Once upon"}]},
}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_message_and_its_stream_say_the_same(server, name):
    def plain(message):
        content = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
        usage = message["usage"]
        prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
        kept = {key: message[key] for key in ("type", "role", "model", "stop_reason", "stop_sequence")}
        return kept | {"content": content, "tokens": (prompt, usage["output_tokens"])}

    whole = post(server, **CASES[name])
    assert whole.status_code == 200, whole.text
    assert plain(fold(events_of(post(server, stream=True, **CASES[name])))) == plain(whole.json())
    assert whole.json()["timings"]["predicted_n"] == whole.json()["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("case", "reason", "kinds"),
    [("text", "max_tokens", ["text"]), ("stop", "stop_sequence", ["text"]), ("call", "tool_use", ["tool_use"]),
     ("forced", "tool_use", ["tool_use"]), ("cut call", "max_tokens", ["tool_use"]), ("form", "end_turn", ["text"])],
)  # fmt: skip
def test_how_a_message_ends(server, case, reason, kinds):
    message = post(server, **CASES[case]).json()
    assert message["stop_reason"] == reason and [block["type"] for block in message["content"]] == kinds
    assert message["stop_sequence"] == ("girl" if case == "stop" else None)
    if reason == "tool_use":
        [call] = message["content"]
        assert isinstance(call["input"]["city"], str) and call["id"].startswith("toolu_")


def test_a_loop_of_five_calls(server):
    messages, num_calls = list(PARIS), 0
    for _ in range(5):
        message = fold(events_of(post(server, **CASES["forced"] | {"messages": messages, "stream": True})))
        [call] = message["content"]
        num_calls += 1
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "21 degrees"}
        messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": [result]}]
    last = post(server, messages=messages, tools=[WEATHER], tool_choice={"type": "none"}).json()
    assert num_calls == 5 and [block["type"] for block in last["content"]] == ["text"]
    assert "<longcat_" not in last["content"][0]["text"]


def test_no_call_is_written_as_text_where_none_is_allowed(server):
    history = [*PARIS, {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "21"}]  # fmt: skip
    for messages in (PARIS, history):
        body = {"messages": messages, "tools": [AS_CHAT], "tool_choice": "none", "temperature": 0, "max_tokens": 40}
        [choice] = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60).json()["choices"]
        assert "<longcat_tool_call>" not in choice["message"]["content"]


def test_count_tokens_counts_the_prompt(server):
    for case in ("text", "call", "forced", "none", "prefill"):
        message = post(server, **CASES[case]).json()["usage"]
        counted = post(server, "/v1/messages/count_tokens", **CASES[case]).json()
        assert counted == {"input_tokens": message["input_tokens"] + message["cache_read_input_tokens"]}


def test_an_attribution_that_differs_leaves_the_prefix_cached(server):
    long = "The dog and the cat were friends. " * 30
    usages = [
        post(server, system=[text(f"x-anthropic-billing-header: cch={n};"), text(long)]).json()["usage"]
        for n in ("11111", "22222")
    ]
    assert usages[1]["cache_read_input_tokens"] >= 64
    assert usages[0]["input_tokens"] + usages[0]["cache_read_input_tokens"] == sum(
        usages[1][name] for name in ("input_tokens", "cache_read_input_tokens")
    )


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "kind", "words"),
    [
        ({"model": "gpt"}, 404, "not_found_error", 'model is "gpt"'),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens is null; expected"),
        ({"messages": []}, 400, "invalid_request_error", "messages is a list of 0"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "invalid_request_error", "reads nothing else"),
        ({"messages": [{"role": "user", "content": "a " * 5000}]}, 400, "invalid_request_error", "prompt is too long"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}, 400, "invalid_request_error", '"g"'),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers is given"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "non-empty"),
        ({"stop_sequences": ["a"] * 17}, 400, "invalid_request_error", "at most 16"),
        ({"temperature": "hot"}, 400, "invalid_request_error", 'temperature is "hot"'),
        (
            {"tools": [WEATHER | {"input_schema": {"not": {}}}], "tool_choice": ONE_CALL},
            400, "invalid_request_error", '"not"',
        ),
    ],
)  # fmt: skip
def test_errors_have_anthropics_shape(server, change, status, kind, words):
    for stream in (False, True):
        response = post(server, **change, stream=stream)
        body = response.json()
        assert response.status_code == status and set(body) == {"type", "error"} and body["type"] == "error"
        assert body["error"]["type"] == kind and words in body["error"]["message"], body
        assert "\n" not in body["error"]["message"] and response.headers["request-id"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [("POST", "/v1/messages", b"{", 400), ("GET", "/v1/messages", None, 405), ("POST", "/v1/messages/x", b"{}", 404),
     ("POST", "/v1/messages/count_tokens", b"[]", 400)],
)  # fmt: skip
def test_errors_of_the_transport_have_it_too(server, method, path, content, status):
    headers = {"content-type": "application/json"}
    response = httpx.request(method, server.url + path, content=content, headers=headers)
    assert response.status_code == status and response.json()["type"] == "error"


def test_what_changes_nothing_is_named(server):
    response = post(server, metadata={"user_id": "u"}, context_management={"edits": []}, service_tier="auto")
    assert response.headers["x-ignored-fields"] == "metadata, context_management, service_tier"


@pytest.mark.parametrize("path", ["/v1/messages/", "/v1/messages/count_tokens//", "/v1/messages?beta=true"])
def test_a_slash_or_a_query_behind_the_path_says_nothing(server, path):
    assert post(server, path).status_code == 200


# --- what the small model does not do ------------------------------------------------------------------------------


class Chunks:
    """In place of the chunks of a queued request."""

    model, num_prompt_tokens = "m", 3

    def __init__(self, *chunks, reason="stop", error=None, body=None):
        answer = CompletionOutput(0, token_ids=[1, 2], finish_reason=reason, error=error)
        output = ChatOutput(-1, None, [1, 2, 3], [answer], RequestMetrics(), num_cached_tokens=2)
        self.chunks = [*chunks, ChatChunk(finish_reason=reason, error=error, output=output)]
        self.body = ChatRequest(messages=[USER], max_tokens=9) if body is None else body

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk


def told(make):
    """A whole answer and the events of another one."""

    async def run():
        return await make().whole(), [event async for event in make().events()]

    return asyncio.run(run())


def test_reasoning_is_a_block_with_a_signature():
    def make():
        thought = ChatChunk(reasoning_delta="I think", token_ids=[1])
        return MessagesAnswer(Chunks(thought, ChatChunk(delta="Hi", token_ids=[2])), "msg_1")

    whole, events = told(make)
    assert whole["content"] == [
        {"type": "thinking", "thinking": "I think", "signature": "unsigned"}, {"type": "text", "text": "Hi"}
    ]  # fmt: skip
    assert fold(events)["content"] == whole["content"]
    assert whole["usage"] == {
        "input_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 2,
        "output_tokens_details": {"thinking_tokens": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "status", "kind"), [("error", 500, "api_error"), ("abort", 503, "overloaded_error")]
)
def test_a_completion_that_fails_is_an_error(reason, status, kind):
    def make():
        return MessagesAnswer(Chunks(ChatChunk(delta="Hi"), reason=reason, error="it broke"), "msg_1")

    with pytest.raises(ApiError) as caught:
        asyncio.run(make().whole())
    assert caught.value.status_code == status

    async def run():
        return [event async for event in make().events()]

    events = asyncio.run(run())
    assert [event["type"] for event in events[-2:]] == ["content_block_stop", "error"]
    assert events[-1]["error"]["type"] == kind


@pytest.mark.parametrize(
    ("reason", "limit", "stop_reason", "expected"),
    [("stop", 9, None, "end_turn"), ("stop", 9, "dog", "stop_sequence"), ("stop", 9, 7, "end_turn"),
     ("length", 2, None, "max_tokens"), ("length", 9, None, "model_context_window_exceeded"),
     ("tool_calls", 9, None, "tool_use")],
)  # fmt: skip
def test_reasons_to_stop(reason, limit, stop_reason, expected):
    chunks = Chunks(reason=reason, body=ChatRequest(messages=[USER], max_tokens=limit))
    chunks.chunks[-1].stop_reason = stop_reason
    whole = asyncio.run(MessagesAnswer(chunks, "msg_1").whole())
    assert whole["stop_reason"] == expected and whole["content"] == []
