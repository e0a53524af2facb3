"""Random requests, by our own description of the API and by mutating good ones: none may make the server fail.

LONGCAT_FUZZ_REQUESTS=20000 sends that many of each kind in place of 300.
"""

import json
import os
import random
import time
from collections import Counter

import httpx
import hypothesis
import pytest

from support.live import LiveServer

NUM_REQUESTS = int(os.environ.get("LONGCAT_FUZZ_REQUESTS", "300"))


@pytest.fixture(scope="module")
def small(tiny):
    """A server whose answers are short."""
    with LiveServer(tiny, "--max-model-len", "64", "--disable-access-log") as server:
        yield server


def check(response: httpx.Response) -> int:
    """No 5xx but a 503 that says when to try again; errors in OpenAI's shape."""
    status = response.status_code
    assert status < 500 or (status == 503 and "retry-after" in response.headers), (status, response.text)
    if status >= 400:
        assert "\n" not in response.json()["error"]["message"]
    return status


def test_requests_by_the_description(small):
    schemathesis = pytest.importorskip("schemathesis", reason="needs the extra `server-test`")
    description = httpx.get(small.url + "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(description)
    operations = [result.ok() for result in schema.get_all_operations()]
    posts = [operation for operation in operations if operation.method.upper() == "POST"]
    assert len(posts) == 8
    statuses: Counter[int] = Counter()
    start = time.perf_counter()
    with httpx.Client(base_url=small.url, timeout=60) as client:
        for operation in operations:
            share = NUM_REQUESTS // len(posts) if operation in posts else 2

            @hypothesis.settings(
                max_examples=max(share, 1), deadline=None, database=None, derandomize=True,
                suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
            )  # fmt: skip
            @hypothesis.given(case=operation.as_strategy())
            def one(case):
                kwargs = case.as_transport_kwargs(base_url=small.url)
                try:
                    response = client.request(
                        kwargs["method"], kwargs["url"], json=kwargs.get("json"), content=kwargs.get("data"),
                        params=kwargs.get("params"), headers=dict(kwargs.get("headers") or {}),
                    )  # fmt: skip
                except (httpx.InvalidURL, httpx.LocalProtocolError, ValueError, UnicodeEncodeError):
                    return  # what cannot be sent
                statuses[check(response)] += 1

            one()
    seconds = time.perf_counter() - start
    print(f"{statuses.total()} requests by the description in {seconds:.0f} s: {dict(statuses)}")
    assert small.process.poll() is None


TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}
GOOD = [
    ("/v1/chat/completions", {
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "temperature": 0.5, "top_p": 0.9, "top_k": 4, "n": 1, "max_tokens": 3, "stop": ["a"], "seed": 1,
        "stream": False, "logprobs": True, "top_logprobs": 2, "logit_bias": {"7": 1.5},
        "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}}),
    ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "hi"},
                     {"role": "assistant", "content": None, "tool_calls": [
                         {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"b\"}"}}]},
                     {"role": "tool", "tool_call_id": "1", "content": "ok"}],
        "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True, "max_completion_tokens": 3, "stream": True,
        "chat_template_kwargs": {"enable_thinking": True}}),
    ("/v1/completions", {
        "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 1, "temperature": 0, "n": 2, "min_tokens": 1,
        "bad_words": ["x"], "allowed_token_ids": [50, 51, 52], "stop_token_ids": [60], "repetition_penalty": 1.1,
        "structured_outputs": {"regex": "[ab]+"}}),
    ("/v1/messages", {
        "system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]},
                     {"role": "assistant", "content": [
                         {"type": "thinking", "thinking": "t", "signature": "s"}, {"type": "text", "text": "a"},
                         {"type": "tool_use", "id": "1", "name": "f", "input": {"a": "b"}}]},
                     {"role": "user", "content": [
                         {"type": "tool_result", "tool_use_id": "1", "is_error": True,
                          "content": [{"type": "text", "text": "ok"}]}]}],
        "tools": [{"name": "f", "description": "d", "input_schema": TOOL["function"]["parameters"]}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "thinking": {"type": "adaptive"},
        "max_tokens": 3, "stop_sequences": ["a"], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stream": True,
        "metadata": {"user_id": "u"}}),
    ("/v1/messages", {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "system": "x",
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}], "system": "x"}),
    ("/v1/responses", {
        "input": [{"role": "developer", "content": "x"},
                  {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                  {"type": "reasoning", "summary": [], "encrypted_content": "base64:YQ=="},
                  {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "f", "arguments": "{\"a\": \"b\"}"},
                  {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "ok"}]},
                  {"type": "custom_tool_call", "call_id": "2", "name": "say", "input": "x"},
                  {"type": "custom_tool_call_output", "call_id": "2", "output": "ok"}],
        "tools": [TOOL["function"] | {"type": "function", "strict": True}, {"type": "custom", "name": "say"},
                  {"type": "web_search"}],
        "tool_choice": "auto", "parallel_tool_calls": True, "max_output_tokens": 3, "stream": True,
        "reasoning": {"effort": "low", "summary": "auto"}, "store": True, "instructions": "x",
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 1}),
    ("/v1/responses", {
        "input": "hi", "max_output_tokens": 3, "store": False, "metadata": {"a": "b"}, "temperature": 0.5,
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"}}),
    ("/tokenize", {"messages": [{"role": "user", "content": "hi"}], "return_token_strs": True}),
    ("/render", {"text": "# a\n\n| b | c |\n| - | - |\n| `d` | $e^2$ |\n\n```python\nprint(1)\n```\n"}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
]  # fmt: skip
ODD = [None, True, 0, -1, 1, 3.5, 1e308, 2**31, 2**63, 2**64, -(2**65), "", "a", "\x00", "\ud800", "é" * 50, [],
       {}, [[]], [None], {"a": None}, "x" * 5000, ["a", 1], {"type": "object"}, "<longcat_user>",
       {"$ref": "#"}]  # fmt: skip


def mutated(value, rng: random.Random):
    """A copy of `value` with one place changed."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        chance = rng.random()
        if chance < 0.1:
            del copy[key]
        elif chance < 0.2 and isinstance(copy, dict):
            copy[rng.choice(["type", "a", "", "name", "\ud800"])] = rng.choice(ODD)
        elif chance < 0.25 and isinstance(copy, list):
            copy *= rng.choice([2, 50])
        else:
            copy[key] = mutated(copy[key], rng)
        return copy
    return rng.choice(ODD)


def test_mutated_requests(small):
    rng = random.Random(5)
    statuses: Counter[int] = Counter()
    start = time.perf_counter()
    with httpx.Client(base_url=small.url, timeout=60, headers={"content-type": "application/json"}) as client:
        for _ in range(NUM_REQUESTS):
            path, body = rng.choice(GOOD)
            for _ in range(rng.choice([1, 1, 1, 2, 5])):
                body = mutated(body, rng)
            data = json.dumps(body).encode()
            if rng.random() < 0.05:
                at = rng.randrange(len(data))
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + rng.randrange(3) :]
            statuses[check(client.post(path, content=data))] += 1
    print(f"{NUM_REQUESTS} mutated requests in {time.perf_counter() - start:.0f} s: {dict(statuses)}")
    assert small.process.poll() is None and statuses[200] and statuses[400]
