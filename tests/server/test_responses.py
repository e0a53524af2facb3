"""/v1/responses: what a body says in the words of chat, the events of a stream, and the responses that are kept."""

import asyncio
import contextlib
import json
import threading

import httpx
import pytest
from longcat.chat.reader import ChatChunk, ChatOutput
from longcat.request.outputs import CompletionOutput, RequestMetrics
from longcat.server.api.responses.answer import ResponsesAnswer
from longcat.server.api.responses.body import ResponsesRequest, decoded, encoded
from longcat.server.api.responses.store import ResponseStore
from longcat.server.http.errors import ApiError

PARIS = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "get_weather", "description": "Get the weather of a city",
           "parameters": PARAMETERS, "strict": True}  # fmt: skip
FUNCTION = {"name": "get_weather", "description": WEATHER["description"], "parameters": PARAMETERS}


# --- bodies --------------------------------------------------------------------------------------------------------


def call(call_id="c1", name="f", arguments='{"a": 1}'):
    return {"type": "function_call", "id": "fc_1", "call_id": call_id, "name": name, "arguments": arguments}


def said(text, role="assistant", kind="output_text"):
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def as_chat(name="f", arguments='{"a": 1}', call_id="c1"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


ANSWER = {"type": "function_call_output", "call_id": "c1", "output": "21"}
THOUGHT = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "T"}]}


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({"input": "Hi"}, [{"role": "user", "content": "Hi"}]),
        ({"input": "Hi", "instructions": "S"},
         [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]),
        ({"input": [{"role": "developer", "content": "S"}, said("Hi", "user", "input_text")]},
         [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]),
        ({"input": [THOUGHT, said("a"), call(), call("c2", "g"), ANSWER]},
         [{"role": "assistant", "content": "a", "reasoning_content": "T",
           "tool_calls": [as_chat(), as_chat("g", call_id="c2")]},
          {"role": "tool", "tool_call_id": "c1", "content": "21"}]),
        ({"input": [said("a"), said("b")]},
         [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]),
        ({"input": [said("a"), THOUGHT, call()]},
         [{"role": "assistant", "content": "a"},
          {"role": "assistant", "content": "", "reasoning_content": "T", "tool_calls": [as_chat()]}]),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": encoded("T")}, said("a")]},
         [{"role": "assistant", "content": "a", "reasoning_content": "T"}]),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}, said("a")]},
         [{"role": "assistant", "content": "a"}]),
        ({"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
         [{"role": "assistant", "content": "no"}]),
        ({"input": [ANSWER | {"output": [{"type": "input_text", "text": "2"}, {"type": "input_text", "text": "1"}]}]},
         [{"role": "tool", "tool_call_id": "c1", "content": "21"}]),
        ({"input": [{"type": "custom_tool_call", "call_id": "c1", "name": "say", "input": 'a "b"'},
                    {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}]},
         [{"role": "assistant", "content": "", "tool_calls": [as_chat("say", '{"input": "a \\"b\\""}')]},
          {"role": "tool", "tool_call_id": "c1", "content": "ok"}]),
    ],
)  # fmt: skip
def test_items_in_the_words_of_chat(given, messages):
    assert ResponsesRequest(**given).as_chat().messages == messages


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"max_output_tokens": 7, "top_k": 3, "seed": -1}, {"max_tokens": 7, "top_k": 3, "seed": None}),
        ({"tools": [WEATHER]}, {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": None}),
        ({"tools": [WEATHER, {"type": "web_search"}]}, {"tools": [{"type": "function", "function": FUNCTION}]}),
        ({"tools": [{"type": "web_search"}], "tool_choice": "auto"}, {"tools": None, "tool_choice": None}),
        ({"tools": [WEATHER], "tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "get_weather"}},
         {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [WEATHER]}},
         {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER]}}}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"response_format": {"type": "text"}}),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
         {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}),
        ({"reasoning": {"effort": "high"}}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"reasoning": {"effort": "none"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"reasoning": {"summary": "auto"}}, {"chat_template_kwargs": {}}),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
    ],
)  # fmt: skip
def test_fields_in_the_words_of_chat(given, expected):
    chat = ResponsesRequest(**{"input": "Hi", **given}).as_chat()
    assert {name: getattr(chat, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input": []}, "input is empty"),
        ({"input": None}, "input is empty"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "content[0] is of type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text is null"),
        ({"input": [{"role": "pope", "content": "x"}]}, 'input[0].role is "pope"; expected user or assistant'),
        ({"input": [{"role": "user"}]}, "input[0].content is null; expected a text or a list"),
        ({"input": [{"type": "web_search_call"}]}, 'input[0] is of type "web_search_call"; expected message'),
        ({"input": [call(arguments=None)]}, "input[0] is a call without the texts name and arguments"),
        ({"input": [ANSWER | {"output": {"a": 1}}]}, "input[0].output is an object of 1 fields"),
        ({"tools": [{"type": "function"}]}, "tools[0].name is null; expected a text"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice is an object of 1 fields"),
        ({"text": {"format": {"type": "xml"}}}, "text.format is an object of 1 fields"),
    ],
)  # fmt: skip
def test_what_chat_cannot_say_is_refused_by_its_place(given, words):
    with pytest.raises(ValueError) as caught:
        ResponsesRequest(**{"input": "Hi", **given}).as_chat()
    told = str(caught.value)
    assert told.startswith("[request] ") and words in told and told.endswith(".") and "\n" not in told


def test_reasoning_comes_back_as_it_was_encoded():
    assert decoded(encoded("Zwei 漢字 \n")) == "Zwei 漢字 \n"
    for other in (None, 5, "", "gAAAA", "base64:***", "base64:/w=="):
        assert decoded(other) == ""


# --- the store -----------------------------------------------------------------------------------------------------


def response(id, previous=None, text="x"):
    item = {"id": f"msg_{id}", "type": "message", "role": "assistant", "content": text}
    return {"id": id, "previous_response_id": previous, "output": [item]}


def texts_of(store, caller, id):
    return [item["content"] for text in store.conversation(caller, id) for item in json.loads(text)]


def test_a_conversation_is_a_chain():
    store = ResponseStore(1 << 20)
    store.add(b"k", [{"role": "user", "content": "1"}], response("a", text="2"))
    store.add(b"k", [{"role": "user", "content": "3"}], response("b", "a", text="4"))
    assert texts_of(store, b"k", "b") == ["1", "2", "3", "4"] and texts_of(store, b"k", None) == []
    assert store.item(b"k", "msg_a")["content"] == "2"
    assert (
        json.loads(store.response(b"k", "b"))["id"] == "b" and json.loads(store.given(b"k", "b"))[0]["content"] == "3"
    )
    store.delete(b"k", "a")
    for gone in (lambda: store.conversation(b"k", "b"), lambda: store.response(b"k", "a"),
                 lambda: store.item(b"k", "msg_a"), lambda: store.delete(b"k", "a")):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            gone()
        assert caught.value.status_code == 404
    store.delete(b"k", "b")
    assert store.num_bytes == 0 and not store._homes


def test_another_key_sees_nothing():
    store = ResponseStore(1 << 20)
    store.add(b"k", [], response("a"))
    for ask in (store.response, store.given, store.conversation, store.delete):
        with pytest.raises(ApiError):
            ask(b"other", "a")
    with pytest.raises(ApiError):
        store.item(b"other", "msg_a")
    assert store.response(b"k", "a")


def test_threads_share_the_store():
    """Long responses are kept by a thread."""
    store = ResponseStore(20_000)
    store.add(b"k", [], response("root"))
    errors = []

    def add():
        try:
            for number in range(3000):
                store.add(b"k", [], response(f"r{number}", text="y" * 500))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    while thread.is_alive():
        with contextlib.suppress(ApiError):  # it went, as it was not used for long
            assert texts_of(store, b"k", "root") == ["x"]
            continue
        store.add(b"k", [], response("root"))
    thread.join()
    assert not errors and store.num_bytes <= 20_000


def test_the_store_is_bounded_and_keeps_what_is_used():
    most = 20_000
    store = ResponseStore(most)
    store.add(b"k", [], response("root"))
    for number in range(100):
        store.add(b"k", [], response(f"r{number}", text="y" * 500))
        store.conversation(b"k", "root")
        assert store.num_bytes <= most
    assert texts_of(store, b"k", "root") == ["x"] and store.response(b"k", "r99")
    with pytest.raises(ApiError):
        store.response(b"k", "r0")
    store.add(b"k", [], response("huge", text="y" * most))
    assert store.response(b"k", "r99")
    with pytest.raises(ApiError):
        store.response(b"k", "huge")
    nothing = ResponseStore(0)
    nothing.add(b"k", [], response("a"))
    assert nothing.num_bytes == 0


# --- over HTTP -----------------------------------------------------------------------------------------------------


def post(server, **body):
    body = {"input": "Tell me a story about a dog.", "max_output_tokens": 12, "temperature": 0, **body}
    return httpx.post(server.url + "/v1/responses", json=body, timeout=60)


def events_of(answer):
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream"), answer.text
    events = []
    for frame in answer.text.split("\n\n"):
        lines = [line for line in frame.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def fold(events):
    """What a client puts together, checked against what the last event says."""
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    output, pieces, done = [], {}, {}
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(output) and event["item"]["status"] == "in_progress"
            output.append(event["item"])
        elif kind == "output_item.done":
            output[event["output_index"]] = event["item"]
        elif kind.endswith(".delta"):
            assert event["item_id"] == output[event["output_index"]]["id"]
            pieces[event["output_index"]] = pieces.get(event["output_index"], "") + event["delta"]
        elif kind in ("output_text.done", "reasoning_text.done"):
            done[event["output_index"]] = event["text"]
        elif kind.endswith("arguments.done") or kind.endswith("input.done"):
            done[event["output_index"]] = event.get("arguments", event.get("input"))
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}" and last["output"] == output
    assert {index: text for index, text in done.items() if text} == pieces
    return last


CASES = {
    "text": {},
    "call": {"input": PARIS, "tools": [WEATHER], "max_output_tokens": 60},
    "forced": {"input": PARIS, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False,
               "max_output_tokens": 60},
    "cut call": {"input": PARIS, "tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 9},
    "none": {"input": PARIS, "tools": [WEATHER], "tool_choice": "none"},
    "custom": {"tools": [{"type": "custom", "name": "say"}], "tool_choice": "required", "parallel_tool_calls": False,
               "max_output_tokens": 60},
    "form": {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["yes", "no"]}}}},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "instructions": {"instructions": "You are a dog."},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_whole_response_and_its_stream_say_the_same(server, name):
    def plain(one):
        hidden = ("id", "call_id")
        output = [{k: v for k, v in item.items() if k not in hidden} for item in one["output"]]
        usage = {key: one["usage"][key] for key in ("input_tokens", "output_tokens", "total_tokens")}
        timed = ("id", "created_at", "completed_at", "timings", "usage", "output")
        return {k: v for k, v in one.items() if k not in timed} | {"output": output, "usage": usage}

    whole = post(server, **CASES[name])
    assert whole.status_code == 200, whole.text
    assert plain(fold(events_of(post(server, stream=True, **CASES[name])))) == plain(whole.json())
    assert whole.json()["timings"]["predicted_n"] == whole.json()["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("case", "status", "item", "item_status"),
    [("text", "incomplete", "message", "incomplete"), ("call", "completed", "function_call", "completed"),
     ("forced", "completed", "function_call", "completed"), ("form", "completed", "message", "completed"),
     ("cut call", "incomplete", "function_call", "incomplete"),
     ("custom", "completed", "custom_tool_call", "completed")],
)  # fmt: skip
def test_how_a_response_ends(server, case, status, item, item_status):
    told = post(server, **CASES[case]).json()
    [one] = told["output"]
    assert (told["status"], one["type"], one["status"]) == (status, item, item_status)
    assert told["incomplete_details"] == ({"reason": "max_output_tokens"} if status == "incomplete" else None)
    if case in ("call", "forced"):
        assert isinstance(json.loads(one["arguments"])["city"], str) and one["call_id"] != one["id"]


def test_logprobs_are_of_the_text(server):
    [item] = post(server, **CASES["logprobs"]).json()["output"]
    [part] = item["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])


@pytest.mark.parametrize("by_id", [False, True])
def test_a_loop_of_five_calls(server, by_id):
    items, previous, num_calls = list(PARIS), None, 0
    for _ in range(5):
        more = {"input": items, "previous_response_id": previous, "stream": True}
        told = fold(events_of(post(server, **CASES["forced"] | more)))
        [one] = told["output"]
        num_calls += 1
        result = {"type": "function_call_output", "call_id": one["call_id"], "output": "21 degrees"}
        previous = told["id"] if by_id else None
        items = [result] if by_id else [*items, one, result]
    last = post(server, input=items, previous_response_id=previous, tools=[WEATHER], tool_choice="none").json()
    assert num_calls == 5 and [item["type"] for item in last["output"]] == ["message"]


def test_a_response_goes_on_from_one_that_is_kept(server):
    first = post(server, instructions="You are a dog.").json()
    second = post(server, input="And then?", previous_response_id=first["id"]).json()
    history = [{"role": "user", "content": "Tell me a story about a dog."}, *first["output"]]
    whole = post(server, input=[*history, {"role": "user", "content": "And then?"}], store=False).json()
    assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]  # without the earlier instructions
    assert second["output"][0]["content"] == whole["output"][0]["content"]
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    referred = post(server, input=[history[0], reference, {"role": "user", "content": "And then?"}]).json()
    assert referred["usage"]["input_tokens"] == whole["usage"]["input_tokens"]

    url = f"{server.url}/v1/responses/{first['id']}"
    assert httpx.get(url).json() == first
    [item] = httpx.get(f"{url}/input_items").json()["data"]
    assert item["content"][0]["text"] == "Tell me a story about a dog." and item["id"]
    other = httpx.get(url, headers={"Authorization": "Bearer another"})
    assert other.status_code == 404  # a server without keys still keeps those apart that clients give
    assert httpx.delete(url).json()["deleted"] is True
    for gone in (httpx.get(url), httpx.delete(url), post(server, previous_response_id=first["id"]),
                 post(server, previous_response_id=second["id"]), post(server, input=[reference]),
                 httpx.get(f"{server.url}/v1/responses/{whole['id']}")):  # fmt: skip
        assert gone.status_code == 404 and gone.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("change", "status", "code", "words"),
    [
        ({"model": "gpt"}, 404, "model_not_found", 'model is "gpt"'),
        ({"previous_response_id": "resp_0"}, 404, "response_not_found", 'names the response "resp_0"'),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, 404, "item_not_found", 'names the item "msg_0"'),
        ({"input": [{"type": "item_reference"}]}, 400, None, "an item_reference without id"),
        ({"input": 5}, 400, None, "input is 5; expected a text or a list"),
        ({"input": "a " * 5000}, 400, "context_length_exceeded", "input has 5003 tokens"),
        ({"input": []}, 400, None, "input is empty"),
        ({"background": True}, 400, None, "background is given"),
        ({"conversation": "c"}, 400, None, "conversation is given"),
        ({"max_output_tokens": 0}, 400, None, "max_output_tokens is 0; expected"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, 400, None, '"required" without tools'),
        ({"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, 400, None, '"not"'),
        ({"chat_template_kwargs": {"tools": []}}, 400, None, "chat_template_kwargs.tools"),
        ({"input": [{"type": "item_reference", "id": "i"}] * 2}, 400, None, "refers to an item twice"),
        ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, 400, None, "at most 20"),
    ],
)  # fmt: skip
def test_errors_are_one_line(server, change, status, code, words):
    for stream in (False, True):
        answer = post(server, **change, stream=stream)
        error = answer.json()["error"]
        assert answer.status_code == status and error["code"] == code and words in error["message"], error
        assert "\n" not in error["message"]


def test_tools_that_cannot_run_here_are_named(server):
    answer = post(server, tools=[WEATHER, {"type": "web_search"}, {"type": "mcp"}], user="u")
    assert answer.status_code == 200 and answer.headers["x-ignored-fields"] == "tools.web_search, tools.mcp, user"


# --- what the small model does not do ------------------------------------------------------------------------------


class Chunks:
    """In place of the chunks of a queued request."""

    model, num_prompt_tokens = "m", 3

    def __init__(self, *chunks, reason="stop", error=None):
        answer = CompletionOutput(0, token_ids=[1, 2], finish_reason=reason, error=error)
        output = ChatOutput(-1, None, [1, 2, 3], [answer], RequestMetrics(), num_cached_tokens=2)
        self.chunks = [*chunks, ChatChunk(finish_reason=reason, error=error, output=output)]

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk


def told(*chunks, store=True, reason="stop", error=None, **body):
    """A whole response, the events of another one, and what was kept of both."""
    kept = []
    request = ResponsesRequest(input="Hi", store=store, **body)

    async def run():
        whole, streamed = (
            ResponsesAnswer(Chunks(*chunks, reason=reason, error=error), request, "resp_1", kept.append)
            for _ in range(2)
        )
        return await whole.whole(), [event async for event in streamed.events()]

    return *asyncio.run(run()), kept


def test_reasoning_is_an_item():
    thought, text = ChatChunk(reasoning_delta="I think", token_ids=[1]), ChatChunk(delta="Hi", token_ids=[2])
    whole, events, _ = told(thought, text, include=["reasoning.encrypted_content"])
    reasoning, message = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "I think"}] and reasoning["id"][:3] == "rs_"
    assert decoded(reasoning["encrypted_content"]) == "I think" and message["content"][0]["text"] == "Hi"
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 1}
    assert whole["usage"]["input_tokens_details"] == {"cached_tokens": 2}
    assert [item["content"] for item in fold(events)["output"]] == [item["content"] for item in whole["output"]]
    assert "response.reasoning_text.delta" in [event["type"] for event in events]
    assert told(thought, text)[0]["output"][0]["encrypted_content"] is None


def test_an_answer_without_a_token_is_an_empty_message():
    whole, events, _ = told()
    [item] = whole["output"]
    assert item["content"][0]["text"] == "" and fold(events)["output"][0]["content"] == item["content"]


@pytest.mark.parametrize("reason", ["error", "abort"])
def test_a_completion_that_fails_is_a_failed_response(reason):
    whole, events, kept = told(ChatChunk(delta="Hi"), reason=reason, error="it broke")
    assert whole["status"] == "failed" and whole["error"]["code"] == "server_error"
    assert "it broke" in whole["error"]["message"] and events[-1]["type"] == "response.failed" and len(kept) == 2
    assert fold(events)["output"][0]["status"] == "incomplete"


def test_nothing_is_kept_unless_it_is_to_be_stored():
    assert told(store=False)[2] == [] and [response["id"] for response in told()[2]] == ["resp_1", "resp_1"]
