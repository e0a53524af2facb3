"""The API's description says what answers look like: real answers fit it."""

import httpx
import jsonschema
import pytest

HELLO = [{"role": "user", "content": "Once upon a time"}]
ASKED = [
    ("POST", "/v1/chat/completions", {"messages": HELLO, "max_tokens": 2, "logprobs": True}),
    ("POST", "/v1/completions", {"prompt": ["Once", "The"], "max_tokens": 2, "logprobs": 1}),
    ("POST", "/v1/messages", {"messages": HELLO, "max_tokens": 2}),
    ("POST", "/v1/messages/count_tokens", {"messages": HELLO}),
    ("POST", "/v1/responses", {"input": "Once", "max_output_tokens": 2}),
    ("GET", "/v1/responses/{id}", None),
    ("GET", "/v1/responses/{id}/input_items", None),
    ("DELETE", "/v1/responses/{id}", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/{name}", None),
    ("GET", "/version", None),
    ("GET", "/props", None),
    ("GET", "/health", None),
    ("POST", "/tokenize", {"prompt": "Once", "return_token_strs": True}),
    ("POST", "/detokenize", {"tokens": [50]}),
]


@pytest.fixture(scope="module")
def description(server):
    return httpx.get(server.url + "/openapi.json").json()


def check(description, path, method, status, value):
    schema = description["paths"][path][method.lower()]["responses"][status]["content"]["application/json"]["schema"]
    jsonschema.validate(value, {**schema, "components": description["components"]})


@pytest.mark.parametrize(("method", "path", "body"), ASKED)
def test_an_answer_and_an_error_have_the_shape_described(server, description, method, path, body):
    made = httpx.post(server.url + "/v1/responses", json={"input": "Once", "max_output_tokens": 2}, timeout=60).json()
    model = httpx.get(server.url + "/v1/models").json()["data"][0]["id"]
    url = server.url + path.replace("{id}", made["id"]).replace("{name}", model)
    answer = httpx.request(method, url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    check(description, path, method, "200", answer.json())
    if body is not None:
        wrong = httpx.request(method, url, json=body | {"model": "no such model"})
        assert wrong.status_code == 404
        check(description, path, method, "default", wrong.json())


def test_every_path_says_what_it_answers(description):
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            has = "application/json" in operation["responses"]["200"].get("content", {})
            assert has or path in ("/metrics", "/ready"), (method, path)
            assert operation["summary"] or path == "/metrics"
