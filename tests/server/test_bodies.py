"""The fields of bodies: null, limits, words of refusals; where bodies come from, and which texts wait."""

import asyncio
import json
import threading

import httpx
import pytest
from longcat.server.api import protocol
from longcat.server.api.messages.body import CountTokensRequest, MessagesRequest
from longcat.server.api.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
)
from longcat.server.api.responses.body import ResponsesRequest
from longcat.server.generation import Service
from longcat.server.http.errors import ApiError, validation_error
from longcat.server.http.streaming import EventStream
from longcat.server.settings import ServerSettings, origins, served_name
from longcat.server.texts import Texts
from pydantic import ValidationError

from support.live import until

MESSAGES = [{"role": "user", "content": "Hi"}]
LEAST = {
    ChatRequest: {"messages": MESSAGES}, CompletionRequest: {"prompt": "x"}, TokenizeRequest: {},
    DetokenizeRequest: {"tokens": []}, StreamOptions: {}, MessagesRequest: {"messages": MESSAGES, "max_tokens": 1},
    CountTokensRequest: {"messages": MESSAGES}, ResponsesRequest: {"input": "x"},
}  # fmt: skip
OPTIONAL = [(model, name) for model, least in LEAST.items() for name in model.model_fields if name not in least]


@pytest.mark.parametrize(("model", "name"), OPTIONAL)
def test_null_is_not_given(model, name):
    least = LEAST[model]
    assert model.model_validate(least | {name: None}) == model.model_validate(least)
    kinds = model.model_json_schema()["properties"][name].get("anyOf", [])
    assert {"type": "null"} in kinds  # and the description says so


def test_null_is_not_given_in_what_is_unknown_refused_or_nested():
    body = CompletionRequest.model_validate(
        {"prompt": "x", "best_of": None, "functions": None, "user": None, "stream_options": {"include_usage": None}}
    )
    assert body.ignored() == [] and body.refusal() is None and body.stream_options.include_usage is False


WRONG = [
    (ChatRequest, {}, "messages is missing; expected a list"),
    (ChatRequest, {"messages": None}, "messages is null; expected a list"),
    (ChatRequest, {"messages": []}, "messages is a list of 0 values; expected a list, each at least 1"),
    (ChatRequest, {"messages": [1]}, "messages[0] is 1; expected messages to be a list"),
    (ChatRequest, {"temperature": -1}, "temperature is -1; expected a number >= 0."),
    (ChatRequest, {"temperature": "hot"}, 'temperature is "hot"; expected a number'),
    (ChatRequest, {"n": 1.5}, "n is 1.5; expected an integer >= 1 and <= 128."),
    (ChatRequest, {"stop": ["a", 1]}, "stop[1] is 1; expected stop to be a text of at most 1024"),
    (ChatRequest, {"stop": {"a": 1}}, "stop is an object of 1 fields; expected a text"),
    (ChatRequest, {"stop": "a" * 1025}, "stop is a text of 1025 characters; expected"),
    (ChatRequest, {"tools": {"a": 1}}, "tools is an object of 1 fields; expected a list"),
    (ChatRequest, {"tool_choice": 5}, "tool_choice is 5; expected a text or an object."),
    (
        ChatRequest,
        {"stream_options": {"include_usage": 7}},
        "stream_options.include_usage is 7; expected true or false.",
    ),
    (ChatRequest, {"logit_bias": {"5": "x"}}, 'logit_bias.5 is "x"; expected logit_bias to be an object'),
    (ChatRequest, {"logit_bias": {str(i): 1 for i in range(protocol.MAX_BIASES + 1)}}, "at most 1024 fields"),
    (ChatRequest, {"bad_words": ["a"] * (protocol.MAX_BAD_WORDS + 1)}, "a list of 129 values; expected"),
    (ChatRequest, {"logit_bias": {"a": 1}}, "logit_bias.a is 1; expected logit_bias to be an object"),
    (ChatRequest, {"logit_bias": {"-1": 1}}, "of at most 1024 fields named by token ids."),
    (ChatRequest, {"bad_words": ["a" * 65]}, "bad_words[0] is a text of 65 characters"),
    (ChatRequest, {"allowed_token_ids": [1] * (protocol.MAX_ALLOWED_IDS + 1)}, "a list of 4097 values; expected"),
    (ChatRequest, {"allowed_token_ids": [1] * 4000 + ["a"]}, 'allowed_token_ids[4000] is "a"; expected'),
    (ChatRequest, {"stop_token_ids": [1] * (protocol.MAX_STOP_IDS + 1)}, "a list of 1025 values; expected"),
    (ChatRequest, {"stop_token_ids": [True]}, "stop_token_ids[0] is true; expected"),
    (ChatRequest, {"guided_choice": ["a"] * (protocol.MAX_CHOICES + 1)}, "a list of 65537 values; expected"),
    (CompletionRequest, {"prompt": ["a", 1]}, "prompt[1] is 1; expected prompt to be a text or a list"),
    (CompletionRequest, {"prompt": [[1], ["a"]]}, 'prompt[1][0] is "a"; expected prompt to be'),
    (CompletionRequest, {"prompt": [[9, 292.0, 3]]}, "prompt[0][1] is 292.0; expected prompt to be"),
    (CompletionRequest, {"prompt": [[9], 5]}, "prompt[1] is 5; expected prompt to be"),
    (CompletionRequest, {"prompt": [1, -5]}, "prompt[1] is -5; expected prompt to be"),
    (CompletionRequest, {"prompt": 5}, "prompt is 5; expected a text or a list, each a text"),
    (CompletionRequest, {"prompt": {}}, "prompt is an object of 0 fields; expected a text"),
    (MessagesRequest, {"max_tokens": None}, "max_tokens is null; expected an integer >= 1"),
    (MessagesRequest, {"system": [1]}, "system[0] is 1; expected system to be a text or a list, each an object."),
    (MessagesRequest, {"stop_sequences": ["a" * 1025]}, "stop_sequences[0] is a text of 1025 characters"),
    (ResponsesRequest, {"input": [1]}, "input[0] is 1; expected input to be a text or a list, each an object."),
    (ResponsesRequest, {"include": ["a"] * 17}, "include is a list of 17 values; expected a list, each a text"),
    (DetokenizeRequest, {"tokens": [1.5]}, "tokens[0] is 1.5; expected tokens to be a list"),
    (DetokenizeRequest, {"tokens": "a"}, 'tokens is "a"; expected a list'),
]
THEIR_WORDS = ("Input should", "constrained", "list[", "dict[", "Field required", "validation", "pydantic", "at least_")


@pytest.mark.parametrize(("model", "change", "message"), WRONG)
def test_refusals_name_the_field_what_is_found_and_what_is_expected(model, change, message):
    given = {**({} if change == {} else LEAST[model]), **change}
    with pytest.raises(ValidationError) as caught:
        model.model_validate(given)
    error = validation_error(caught.value, model, given)
    said = str(error.detail)
    assert said.startswith("[request] ") and message in said and "\n" not in said and len(said) < 1000
    assert not any(word in said for word in THEIR_WORDS), said


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, MessagesRequest, ResponsesRequest])
@pytest.mark.parametrize("value", ["x", 1, 1.5, True, [], {}, [{}], {"a": []}, "é" * 5000, -(10**30)])
def test_no_field_answers_in_a_librarys_words(model, value):
    for name in model.model_fields:
        given = LEAST[model] | {name: value}
        try:
            model.model_validate(given)
        except ValidationError as error:
            said = str(validation_error(error, model, given).detail)
            assert not any(word in said for word in THEIR_WORDS) and said.startswith(f"[request] {name}"), said


@pytest.mark.parametrize(
    ("given", "name"),
    [({"functions": [{}]}, "functions"), ({"function_call": {"name": "f"}}, "function_call"),
     ({"best_of": 2}, "best_of"), ({"n": 2, "best_of": 3}, "best_of"),
     ({"reasoning_effort": "low"}, "reasoning_effort"), ({"use_beam_search": True}, "use_beam_search"),
     ({"modalities": ["text", "audio"]}, "modalities"), ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
     ({"functions": []}, None), ({"n": 2, "best_of": 2}, None), ({"best_of": 1}, None),
     ({"modalities": ["text"]}, None), ({"use_beam_search": False}, None), ({"function_call": "auto"}, None)],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_unless_it_asks_for_nothing(given, name):
    body = ChatRequest.model_validate({"messages": MESSAGES} | given)
    refused = body.refusal()
    assert (refused and refused[0]) == name
    assert name is None or (name in refused[1] and "expected" in refused[1])


def test_a_seed_of_minus_one_is_any():
    assert ChatRequest(messages=MESSAGES, seed=-1).seed is None and ChatRequest(messages=MESSAGES, seed=-2).seed == -2


# --- over HTTP ------------------------------------------------------------------------------------------------------

GOOD = b'{"prompt": "Once", "max_tokens": 1}'


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 200), ({"content-type": "application/json"}, 200), ({"content-type": "Application/JSON; charset=utf-8"}, 200),
     ({"content-type": "application/vnd.api+json"}, 200), ({"content-type": "text/plain"}, 400),
     ({"content-type": "application/x-www-form-urlencoded"}, 400), ({"content-type": "multipart/form-data"}, 400),
     ({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403), ({"origin": "OWN"}, 200),
     ({"origin": "https://evil.example", "content-type": "application/json"}, 200),
     ({"host": "localhost"}, 200), ({"host": "LOCALHOST:1"}, 200), ({"host": "127.0.0.1:9"}, 200),
     ({"host": "[::1]"}, 200),
     ({"host": "evil.example"}, 403), ({"host": "evil.example:8000"}, 403), ({"host": "127.0.0.1.evil.example"}, 403),
     ({"host": "localhost.evil.example"}, 403), ({"host": "[::2]"}, 403), ({"host": "localhost@evil.example"}, 403),
     ({"host": ""}, 403)],
)  # fmt: skip
def test_bodies_are_taken_from_where_they_may_come(server, headers, status):
    headers = {name: value.replace("OWN", server.url) for name, value in headers.items()}
    response = httpx.post(server.url + "/v1/completions", content=GOOD, headers=headers, timeout=60)
    assert response.status_code == status, response.text
    if status != 200:
        assert "; expected " in response.json()["error"]["message"]


@pytest.mark.parametrize("padding", [0, 20_000, 100_000])
@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "empty"), (b"{", "no JSON"), (b"[]", "no object"), (b"5", "no object"), (b'"\xff"', "no JSON"),
     (b'{"prompt": NaN}', "no JSON"), (b'{"prompt": "a" "b"}', "line 1, column"), (b"[" * 5000, "expected")],
)  # fmt: skip
def test_bodies_that_are_no_object(server, body, message, padding):
    response = httpx.post(server.url + "/v1/completions", content=b" " * padding + body if body else body)
    error = response.json()["error"]["message"]
    assert response.status_code == 400 and message in error and error.startswith("[request] ")


def test_unknown_fields_are_named_in_a_bounded_header_and_line(server):
    body = {"prompt": "Once", "max_tokens": 1} | {f"field {i} " + "é\n" * 500: i for i in range(3000)}
    response = httpx.post(server.url + "/v1/completions", json=body, headers={"x-request-id": "many"}, timeout=60)
    names = response.headers["x-ignored-fields"].split(", ")
    assert response.status_code == 200 and len(names) == 8 and names[0].startswith("field%200%20")
    until(lambda: any('"many"' in line for line in server.lines))
    lines = [line for line in server.lines if '"many"' in line]
    assert len(lines) == 1 and len(lines[0]) < 8000 and len(json.loads(lines[0])["ignored"]) == 8
    httpx.post(server.url + "/v1/completions", json={"prompt": "Once", "max_tokens": 1, "temprature": 1}, timeout=60)
    httpx.post(server.url + "/v1/completions", json={"prompt": "Once", "max_tokens": 1, "temprature": 1}, timeout=60)
    said = [line for line in server.lines if "temprature is unknown and ignored; did you mean temperature?" in line]
    assert len(said) == 1


@pytest.mark.parametrize("text", ["a dog ", "é", "<longcat_user>"])
@pytest.mark.parametrize("kind", ["completions", "list", "chat"])
def test_prompts_that_cannot_fit_are_refused(server, kind, text):
    text = text * (900_000 // len(text.encode()))
    body = {"messages": [{"role": "user", "content": text}]} if kind == "chat" else {"prompt": ["a", text]}
    body = {"prompt": text} if kind == "completions" else body
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 400 and "cannot fit" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [("/tokenize", {"prompt": "a" * ((1 << 20) + 1)}, "1048577 characters"),
     ("/detokenize", {"tokens": [5] * ((1 << 17) + 1)}, "131073 ids"),
     ("/v1/completions", {"prompt": [5] * 100_000}, "100000 tokens"),
     ("/v1/completions", {"prompt": [[5], [5] * 100_000]}, "100000 tokens"),
     ("/v1/chat/completions", {"messages": [{"role": "user", "content": "é" * (1 << 20)}] * 3}, "characters"),
     ("/v1/completions", {"prompt": "a" * (5 << 20)}, "at most 4194304 bytes")],
)  # fmt: skip
def test_limits_of_texts_and_ids(server, path, body, found):
    response = httpx.post(server.url + path, json=body, timeout=60)
    error = response.json()["error"]["message"]
    assert response.status_code == 400 and found in error and "expected" in error


# --- what waits -----------------------------------------------------------------------------------------------------


class Encoder:
    """An engine that tokenizes when it is told to, one token a character."""

    def __init__(self):
        self.texts, self.go = [], threading.Event()
        self.tokenizer = self.library = self
        self.vocab_size, self.normalizer = 5, None

    def token_bytes(self, token_id):
        return b"abc"[:token_id]

    def info(self):
        return {"max_model_len": 10}

    def text_setup(self):
        return {}

    def encode(self, text):
        self.go.wait(10)
        self.texts.append(text)
        return [1] * len(text)


def test_a_text_that_cannot_fit_is_never_tokenized():
    engine = Encoder()
    engine.go.set()
    texts = Texts(engine, ServerSettings(("x",)), 10)
    assert texts.encode(["a" * 30]) == [[1] * 30]
    for text in ("a" * 31, "é" * 16):
        with pytest.raises(ApiError, match="cannot fit"):
            texts.encode(["a", text])
    assert engine.texts == ["a" * 30]


def test_the_texts_of_clients_that_left_are_not_tokenized():
    async def run():
        engine = Encoder()
        service = Service(engine, ServerSettings(("x",)), None, None)
        tasks = [
            asyncio.ensure_future(service.planned(None, lambda texts, _, name=name: texts.encode([name])))
            for name in ("a", "b", "c", "d", "e")
        ]
        await asyncio.sleep(0.05)  # two threads are at work on the first two
        for task in tasks[2:4]:
            task.cancel()
        await asyncio.gather(*tasks[2:4], return_exceptions=True)
        engine.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(engine.texts) == ["a", "b", "e"]

    asyncio.run(run())


def test_a_stream_without_events_sends_comments():
    class Answer:
        log: dict = {}
        named_events = False
        closed = 0

        def __init__(self):
            self.go = asyncio.Event()

        async def events(self):
            yield {"a": 1}
            await self.go.wait()
            yield {"a": 2}

        async def aclose(self):
            self.closed += 1

    async def run():
        answer, sent = Answer(), []

        async def send(message):
            sent.append(message.get("body"))
            if sent.count(b": waiting\n\n") == 3:
                answer.go.set()

        stream = EventStream(answer, 30.0, 0.01)
        await stream({"type": "http", "state": {"log": {}}}, asyncio.Event().wait, send)
        assert [body for body in sent[1:] if body != b": waiting\n\n"] == [
            b'data: {"a":1}\n\n', b'data: {"a":2}\n\n', b"data: [DONE]\n\n"
        ]  # fmt: skip
        assert sent.count(b": waiting\n\n") >= 3 and answer.closed == 1

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize(
    ("values", "expected"),
    [(['["*"]'], ("*",)), (['["https://a.example", "http://b:1"]'], ("https://a.example", "http://b:1")),
     (["*"], ("*",)), (["https://a.example", '["*"]'], ("https://a.example", "*")), (["[]"], ()), ([], ())],
)  # fmt: skip
def test_origins_are_taken_in_vllms_form_too(values, expected):
    assert origins(values) == expected


@pytest.mark.parametrize(
    "value", ["a.example", '["a.example"]', '["*"', "[5]", "https://a.example/", "", '{"a": 1}', "null"]
)
def test_origins_that_can_match_nothing_are_refused(value):
    with pytest.raises(ValueError, match="--cors-origin is .*; expected"):
        origins([value])


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/m/LongCat", "LongCat"), ("/m/LongCat/", "LongCat"), ("/c/hub/models--org--name/snapshots/0123abc", "org/name"),
     ("/c/models--org--name-1.5/snapshots/main/", "org/name-1.5"), ("/c/models--gpt2/snapshots/abc", "gpt2"),
     ("/c/models--org--name", "models--org--name"), ("/snapshots/abc", "abc"), ("/", "model")],
)  # fmt: skip
def test_the_served_name_of_a_folder(folder, name):
    assert served_name(folder) == name
