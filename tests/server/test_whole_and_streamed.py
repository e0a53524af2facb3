"""A whole answer and the fold of its stream say the same, field by field: one accounting for both."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

STORY = [{"role": "user", "content": "Tell me a story about a dog."}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
                    "days": {"type": "integer", "maximum": 9, "minimum": 0},
                },
                "required": ["city"],
            },
        },
    }
]
WIDE = {"structured_outputs": {"regex": "[😀-😎漢字é ]{6}"}}  # characters of several tokens
FORM = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "a",
            "schema": {
                "type": "object",
                "properties": {"answer": {"type": "string", "maxLength": 8}},
                "required": ["answer"],
            },
        },
    }
}
CALLS = {"messages": WEATHER, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}

CHATS: dict[str, dict[str, Any]] = {
    "text": {},
    "three": {"n": 3, "logprobs": True, "top_logprobs": 2},
    "logprobs without any": {"logprobs": True},
    "wide characters": WIDE | {"logprobs": True, "top_logprobs": 1},
    "cut in a character": WIDE | {"max_tokens": 2, "logprobs": True},
    "cut in a character, two": WIDE | {"max_tokens": 5, "n": 2},
    "stop in wide characters": WIDE | {"stop": ["é", "漢", "😅", " "], "n": 3, "logprobs": True},
    "stop": {"temperature": 0, "stop": ["dog", "og "]},
    "stop kept": {"temperature": 0, "stop": ["dog"], "include_stop_str_in_output": True},
    "stop at white space": {"temperature": 0, "stop": [" ", "\n"]},
    "stop at the first character": {"temperature": 0, "stop": ["O", "T", "L", "A"]},
    "stop never whole": {"temperature": 0, "stop": ["zzzz", "a dog that"], "max_tokens": 20},
    "stop token": {"stop_token_ids": list(range(300, 600)), "n": 2},
    "call": {"messages": WEATHER, "tools": TOOLS, "temperature": 0},
    "call with logprobs": {"messages": WEATHER, "tools": TOOLS, "temperature": 0, "logprobs": True},
    "forced call": CALLS | {"max_tokens": 120},
    "forced calls": CALLS | {"parallel_tool_calls": True, "n": 2, "max_tokens": 90},
    "call or form": FORM | {"messages": WEATHER, "tools": TOOLS, "temperature": 0, "max_tokens": 60},
    "form": FORM | {"max_tokens": 60},
    **{
        f"call cut after {i}": CALLS | {"max_tokens": i, "logprobs": True}
        for i in (1, 2, 5, 8, 11, 12, 13, 14, 16, 19, 24)
    },
    "call with a stop in its value": {"messages": WEATHER, "tools": TOOLS, "temperature": 0, "stop": ["ari"]},
    "call with a stop in its name": {"messages": WEATHER, "tools": TOOLS, "temperature": 0, "stop": ["_wea"]},
    "call with a stop at its end": {
        "messages": WEATHER,
        "tools": TOOLS,
        "temperature": 0,
        "stop": ["</longcat_arg_value>"],
    },
    "call with a stop in its tag": {"messages": WEATHER, "tools": TOOLS, "temperature": 0, "stop": ["arg_key"]},
}
TEXTS: dict[str, dict[str, Any]] = {
    "text": {},
    "prompts": {"prompt": ["Once", "The dog", "漢字"], "n": 2, "logprobs": 2},
    "wide characters": WIDE | {"logprobs": 1},
    "cut in a character": WIDE | {"max_tokens": 2, "logprobs": 1},
    "stop in wide characters": WIDE | {"stop": ["é", "漢", "😅", " "], "n": 3, "logprobs": 1},
    "stop": {"temperature": 0, "stop": ["was", " t"], "logprobs": 0},
    "stop token": {"stop_token_ids": list(range(300, 600)), "n": 2, "logprobs": 1},
}


def post(server: Any, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(server.url + path, json={"model": "tiny", "seed": 3, "max_tokens": 40} | body, timeout=60)


def events(server: Any, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = post(server, path, body | options)
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]


def fold(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client puts together."""
    usage = chunks.pop()["usage"]
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        [choice] = chunk["choices"]
        one = choices.setdefault(choice["index"], {"logprobs": None, "ended": 0})
        if choice["finish_reason"] is not None:
            one["ended"] += 1
        one.update({key: value for key, value in choice.items() if key not in ("delta", "text", "logprobs")})
        if "text" in choice:
            one["text"] = one.get("text", "") + choice["text"]
        for key, value in choice.get("delta", {}).items():
            message = one.setdefault("message", {})
            if key == "tool_calls":
                for news in value:
                    calls = message.setdefault("tool_calls", {})
                    call = calls.setdefault(news["index"], {"name": "", "arguments": ""})
                    for field, text in news["function"].items():
                        call[field] += text
            elif key == "role" or value is None:
                message[key] = value
            else:
                message[key] = (message.get(key) or "") + value
        for key, value in (choice["logprobs"] or {}).items():
            one["logprobs"] = one["logprobs"] or {}
            old = one["logprobs"].get(key)
            one["logprobs"][key] = value if old is None else old + value
    assert all(one.pop("ended") == 1 for one in choices.values())
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer, or a fold, without what differs by its nature: ids, times, what the cache held."""
    for choice in answer["choices"]:
        message = choice.get("message", {})
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message["tool_calls"] = [call["function"] for call in calls]
        elif calls is not None:
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        if "content" in message:
            message["content"] = message["content"] or None
    answer["usage"].pop("prompt_tokens_details")
    return {"choices": answer["choices"], "usage": answer["usage"]}


@pytest.mark.parametrize("name", CHATS)
def test_chat(server, name):
    body = {"messages": STORY} | CHATS[name]
    whole = post(server, "/v1/chat/completions", body)
    assert whole.status_code == 200, whole.text
    assert plain(fold(events(server, "/v1/chat/completions", body))) == plain(whole.json())


@pytest.mark.parametrize("name", TEXTS)
def test_completions(server, name):
    body = {"prompt": "Once upon a time"} | TEXTS[name]
    whole = post(server, "/v1/completions", body)
    assert whole.status_code == 200, whole.text
    assert plain(fold(events(server, "/v1/completions", body))) == plain(whole.json())


def test_offsets_point_into_the_text(server):
    body = WIDE | {"prompt": "漢字 é", "logprobs": 0, "echo": True}
    [choice] = post(server, "/v1/completions", body).json()["choices"]
    logprobs, text = choice["logprobs"], choice["text"]
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if "\ufffd" not in token and token != "</longcat_s>":
            assert text.startswith(token, offset)


def test_an_unfinished_call_is_told_by_its_end_and_goes_back(server):
    for limit in range(6, 24):
        body = CALLS | {"max_tokens": limit, "temperature": 0}
        [choice] = post(server, "/v1/chat/completions", body).json()["choices"]
        message = choice["message"]
        assert message["content"] or message["tool_calls"]
        assert choice["finish_reason"] in ("length", "tool_calls")
        for call in message.get("tool_calls") or ():
            arguments = call["function"]["arguments"]
            if choice["finish_reason"] == "tool_calls":
                assert isinstance(json.loads(arguments)["city"], str)
            else:
                assert arguments.startswith("{")
        again = {"messages": [*WEATHER, message, *STORY], "tools": TOOLS, "max_tokens": 2}
        assert post(server, "/v1/chat/completions", again).status_code == 200


def test_tools_and_a_form(server):
    def ends(choice: Any, **more: Any) -> tuple[str, dict[str, Any]]:
        body = FORM | {"messages": WEATHER, "tools": TOOLS, "tool_choice": choice, "max_tokens": 100} | more
        response = post(server, "/v1/chat/completions", body)
        assert response.status_code == 200, response.text
        [choice] = response.json()["choices"]
        return choice["finish_reason"], choice["message"]

    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        reason, message = ends(choice)
        assert message["tool_calls"] and (
            reason == "length" or json.loads(message["tool_calls"][0]["function"]["arguments"])
        )
    reason, message = ends("auto", temperature=0)
    assert reason == "tool_calls"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}
    [start] = httpx.post(server.url + "/tokenize", json={"prompt": "<longcat_tool_call>"}).json()["tokens"]
    reason, message = ends("auto", logit_bias={str(start): -100})
    assert reason == "stop" and set(json.loads(message["content"])) == {"answer"}
    reason, message = ends("none")
    assert set(json.loads(message["content"])) == {"answer"} and "tool_calls" not in message
    free = [{"type": "function", "function": {"name": "get_weather", "parameters": {"not": {}}}}]
    assert ends("auto", tools=free, temperature=0)[1]
    body = {"messages": WEATHER, "tools": free, "tool_choice": "required"}
    refused = post(server, "/v1/chat/completions", body)
    assert refused.status_code == 400 and '"not"' in refused.json()["error"]["message"]


def test_messages_of_libraries_are_not_shown(server):
    bad = [
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "start: a"}},
        {"structured_outputs": {"grammar": "start: /(/"}},
        {"structured_outputs": {"json": {"type": "integer", "minimum": 3, "maximum": 1}}},
        {"structured_outputs": {"json": "{"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(?=a)"}}}},
        {"tools": TOOLS + [{"type": "web_search"}]},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": "#/no"}}}],
            "tool_choice": "required",
        },
    ]
    for body in bad:
        response = post(server, "/v1/chat/completions", {"messages": STORY} | body)
        message = response.json()["error"]["message"]
        assert response.status_code == 400, message
        assert "found" in message and "; expected" in message and len(message) < 400
        for word in (
            "error:",
            "regex parse",
            "Unimplemented",
            "longcat_arg_key",
            "line 2",
            "NoneType",
            "\n",
            "json_schema:",
        ):
            assert word not in message, message
