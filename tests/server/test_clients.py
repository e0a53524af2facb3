"""What clients of OpenAI's API send, and what they read of an answer. By plain HTTP: the clients are not needed."""

import json

import httpx
import pytest

STORY = [{"role": "user", "content": "Tell me a story about a dog."}]
PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": f"Do {name}", "parameters": parameters}}


WEATHER = tool("get_weather", city={"type": "string"})
VOTE = tool("vote", yes={"type": "boolean"})


def chat(server, **body):
    body = {"messages": STORY, "temperature": 0, "max_tokens": 8, **body}
    return httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60)


def error_of(response, status=400):
    assert response.status_code == status, response.text
    return response.json()["error"]


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("POST", "/v1/v1/messages", 404, "expected /v1/messages. Let the client's base URL end before /v1."),
        (
            "POST",
            "/v1/embeddings",
            404,
            "expected POST /v1/chat/completions, POST /v1/completions, POST /v1/responses, POST",
        ),
        ("POST", "/chat/completions", 404, "expected /v1/chat/completions. Let the client's base URL end in /v1."),
        ("GET", "/models", 404, "expected /v1/models. Let the client's base URL end in /v1."),
        ("GET", "/v1/chat/completions", 405, "expected POST."),
    ],
)
def test_what_is_not_served_is_answered_with_what_is(server, method, path, status, expected):
    message = error_of(httpx.request(method, server.url + path), status)["message"]
    assert f"found {method} {path}; " in message and expected in message


def test_a_file_sent_as_a_form_is_not_found(server):
    response = httpx.post(server.url + "/v1/files", data={"purpose": "batch"}, files={"file": b"x" * 300_000})
    assert "POST /v1/files" in error_of(response, 404)["message"]


@pytest.mark.parametrize(
    ("field", "num_words"),
    [
        ("messages", 3000),
        ("prompt", 3000),
        ("prompt", 10_000),
        ("prompt", 300_000),
    ],  # tokenized; in part; not
)
def test_a_prompt_beyond_the_context_is_told_by_its_code(server, field, num_words):
    text = "a " * num_words
    body = {"prompt": text} if field == "prompt" else {"messages": [{"role": "user", "content": text}]}
    path = "/v1/completions" if field == "prompt" else "/v1/chat/completions"
    for stream in (False, True):
        error = error_of(httpx.post(server.url + path, json=body | {"stream": stream}, timeout=60))
        assert error["code"] == "context_length_exceeded" and error["param"] == field
        assert "maximum context length is 2048 tokens" in error["message"]


# --- fields of a request -------------------------------------------------------------------------------------------


def test_a_prediction_and_no_effort_change_no_answer(server):
    plain = chat(server).json()["choices"]
    predicted = chat(server, prediction={"type": "content", "content": "Once upon a time"}, reasoning_effort="none")
    assert predicted.json()["choices"] == plain and predicted.headers["x-ignored-fields"] == "prediction"


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_the_ones_that_the_model_sees(server, mode):
    def ask(**body):
        return chat(server, messages=PARIS, max_tokens=60, **body).json()

    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
    some = ask(tools=[VOTE, WEATHER], tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    alone = ask(tools=[WEATHER], tool_choice=mode)
    assert some["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    [call] = some["choices"][0]["message"]["tool_calls"]
    assert call["function"] == alone["choices"][0]["message"]["tool_calls"][0]["function"]


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (
            {"mode": "auto", "tools": [{"type": "function", "function": {"name": "fly"}}]},
            '"fly", which is not',
        ),
        ({"mode": "none", "tools": [WEATHER]}, '"mode": "auto" or "required"'),
        ({"mode": "auto", "tools": []}, '"tools": [...]'),
        (None, '"allowed_tools": {"mode"'),
    ],
)
def test_allowed_tools_that_say_nothing_possible(server, allowed, words):
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert words in error_of(chat(server, tools=[WEATHER], tool_choice=choice))["message"]


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (
            [{"role": "assistant", "content": None, "refusal": "I will not."}],
            [{"role": "assistant", "content": "I will not."}],
        ),
        (
            [{"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]}],
            [{"role": "assistant", "content": "I will not."}],
        ),
        (
            [
                {"role": "assistant", "content": None, "function_call": {"name": "get_weather", "arguments": "{}"}},
                {"role": "function", "name": "get_weather", "content": "21"},
            ],
            [
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "21"},
            ],
        ),
    ],
)  # fmt: skip
def test_histories_with_refusals_and_older_calls(server, given, same):
    def ids(messages):
        body = {"messages": [*PARIS, *messages, *STORY], "tools": [WEATHER]}
        response = httpx.post(server.url + "/tokenize", json=body)
        assert response.status_code == 200, response.text
        return response.json()["tokens"]

    assert ids(given) == ids(same)


def test_a_refusal_is_the_assistants(server):
    part = {"type": "refusal", "refusal": "no"}
    assert "text only" in error_of(chat(server, messages=[{"role": "user", "content": [part]}]))["message"]


# --- shapes of an answer -------------------------------------------------------------------------------------------


def events_of(response):
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_a_message_has_the_fields_that_typed_clients_require(server):
    for body in ({}, {"messages": PARIS, "tools": [WEATHER], "max_tokens": 60}):
        [choice] = chat(server, **body).json()["choices"]
        assert {"index", "message", "finish_reason", "logprobs"} <= set(choice)
        assert {"role", "content", "refusal"} <= set(choice["message"]) and choice["message"]["refusal"] is None


def deltas_of(response):
    return [event["choices"][0]["delta"] for event in events_of(response)]


def test_a_stream_that_may_call_begins_without_a_text(server):
    deltas = deltas_of(chat(server, messages=PARIS, tools=[WEATHER], max_tokens=60, stream=True))
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    assert not any(isinstance(delta.get("content"), str) for delta in deltas)
    assert any("tool_calls" in delta for delta in deltas)
    for body in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        first = deltas_of(chat(server, stream=True, **body))[0]
        assert first == {"role": "assistant", "content": "", "refusal": None}


def test_an_event_has_one_piece_of_one_call(server):
    order = tool("order", count={"type": "integer", "maximum": 9}, kind={"enum": ["small"]}, note={"type": "string"})
    options = dict(tools=[order], tool_choice="required", max_tokens=200, seed=1, temperature=1)
    [choice] = chat(server, **options).json()["choices"]
    streamed = deltas_of(chat(server, stream=True, **options))
    pieces = [delta["tool_calls"] for delta in streamed if "tool_calls" in delta]
    assert pieces and all(len(calls) == 1 for calls in pieces)
    told = {}
    for [call] in pieces:
        told[call["index"]] = told.get(call["index"], "") + call["function"]["arguments"]
    assert list(told.values()) == [call["function"]["arguments"] for call in choice["message"]["tool_calls"]]


def test_a_list_in_a_forced_call_comes_as_it_is_made(server):
    items = {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 4, "maxItems": 4}
    options = dict(tools=[tool("order", items=items)], tool_choice="required", parallel_tool_calls=False, seed=1)
    options |= dict(temperature=1, max_tokens=200)
    [choice] = chat(server, **options).json()["choices"]
    streamed = deltas_of(chat(server, stream=True, **options))
    pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in streamed if "tool_calls" in delta]
    [call] = choice["message"]["tool_calls"]
    assert "".join(pieces) == call["function"]["arguments"] and len(json.loads("".join(pieces))["items"]) == 4
    assert len(pieces) > 8 and max(map(len, pieces)) < 24
    cut = chat(server, **options | {"max_tokens": 30}).json()["choices"][0]
    beginning = cut["message"]["tool_calls"][0]["function"]["arguments"]
    assert cut["finish_reason"] == "length" and len(beginning) > 20 and "".join(pieces).startswith(beginning)


# --- connections ---------------------------------------------------------------------------------------------------


def test_pools_of_clients_give_up_a_connection_before_the_server():
    from longcat.server.run import web_config

    assert web_config(None, "httptools").timeout_keep_alive > 60  # httpx 5, aiohttp 15, Java 30, balancers 60
