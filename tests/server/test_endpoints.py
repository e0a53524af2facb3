"""What the server refuses and tells, beyond what OpenAI's client looks at."""

import json
import re
import socket
import ssl
import subprocess
import time

import httpx
import longcat
import pytest
from longcat.cli import main

from support.certificates import make_certificate, needs_openssl
from support.live import LiveServer, until

HELLO = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 4}


def post(server, path, body, **options):
    return httpx.post(server.url + path, json=body, timeout=60, **options)


def timed(what, call):
    start = time.perf_counter()
    result = call()
    print(f"{what}: {1000 * (time.perf_counter() - start):.1f} ms")
    return result


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {}, 400, "messages"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "pope", "content": "x"}]}, 400, "role 'pope'"),
        ("/v1/chat/completions", HELLO | {"n": 129}, 400, "n is 129; expected"),
        ("/v1/chat/completions", HELLO | {"stop": ["a"] * 17}, 400, "at most 16"),
        ("/v1/chat/completions", HELLO | {"stop": [""]}, 400, "non-empty"),
        ("/v1/chat/completions", HELLO | {"logprobs": True, "top_logprobs": 21}, 400, "at most 20"),
        ("/v1/chat/completions", HELLO | {"temperature": -1}, 400, "temperature"),
        ("/v1/chat/completions", HELLO | {"chat_template": "{{ 1 }}"}, 400, "templates of requests are off"),
        ("/v1/chat/completions", HELLO | {"response_format": {"type": "xml"}}, 400, "response_format"),
        ("/v1/chat/completions", HELLO | {"structured_outputs": {"regex": "("}}, 400, "unclosed group"),
        ("/v1/chat/completions", HELLO | {"tools": [{"type": "function"}]}, 400, "tool 0 has no name"),
        ("/v1/chat/completions", HELLO | {"chat_template_kwargs": {"tools": []}}, 400, "chat_template_kwargs.tools"),
        ("/tokenize", {"messages": [], "chat_template_kwargs": {"tags": []}}, 400, "chat_template_kwargs.tags"),
        ("/v1/completions", {"prompt": "x", "logprobs": 21}, 400, "at most 20"),
        ("/v1/completions", {"prompt": ""}, 400, "no tokens"),
        ("/v1/completions", {"prompt": [5000]}, 400, "5000"),
        ("/v1/completions", {"prompt": ["x"] * 1025}, 400, "1 to 1024"),
        ("/v1/completions", {"prompt": ["x"] * 1024, "n": 3}, 400, "ask for 3072 completions; expected at most 2048"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, 400, "suffix"),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias"),
        ("/v1/completions", {"prompt": "x", "allowed_token_ids": []}, 400, "allowed_token_ids"),
        ("/tokenize", {}, 400, "prompt or messages"),
        ("/tokenize", {"prompt": "x", "model": "y"}, 404, 'model is "y"; expected'),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
    ],
)
def test_refusals_are_one_line(server, path, body, status, message):
    response = post(server, path, body)
    error = response.json()["error"]
    assert response.status_code == status and message in error["message"] and "\n" not in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"prompt": 1e999}', b"\xff\xfe"]
)
def test_bodies_that_are_no_json(server, body):
    headers = {"content-type": "application/json"}
    assert httpx.post(server.url + "/v1/completions", content=body, headers=headers).status_code == 400


def test_a_prompt_one_token_too_long_is_refused_with_the_limit(server):
    ids = [100] * 2048
    response = timed("prompt over the limit", lambda: post(server, "/v1/completions", {"prompt": ids, "max_tokens": 1}))
    assert response.status_code == 400 and "max_model_len=2048" in response.json()["error"]["message"]


def test_a_stream_with_a_form_is_refused_before_it_begins(server):
    body = {"prompt": [100] * 2048, "structured_outputs": {"regex": "[ab]+"}, "stream": True}
    response = post(server, "/v1/completions", body)
    assert response.status_code == 400 and "max_model_len=2048" in response.json()["error"]["message"]


def test_oversized_bodies_and_headers(server):
    text = b'{"prompt": "' + b"a" * (33 << 20) + b'"}'
    headers = {"content-type": "application/json"}
    url = server.url + "/v1/completions"

    def send_whole():
        try:
            return httpx.post(url, content=text, headers=headers).status_code
        except httpx.WriteError:  # it hung up without reading on
            return 413

    assert timed("body of 33 MiB", send_whole) == 413

    def send_in_chunks():
        pieces = (text[at : at + 65536] for at in range(0, len(text), 65536))
        return httpx.post(url, content=pieces, headers=headers, timeout=60).status_code

    assert timed("chunked body of 33 MiB", send_in_chunks) == 413
    big = timed("header of 20 kB", lambda: httpx.get(server.url + "/health", headers={"x-big": "a" * 20_000}))
    assert big.status_code == 431 and "16384" in big.json()["error"]["message"]
    many = httpx.get(server.url + "/health", headers={f"x-{i}": "a" * 50 for i in range(400)})
    assert many.status_code == 431
    assert httpx.get(server.url + "/health", headers={"x-big": "a" * 15_000}).status_code == 200


def test_a_header_that_never_ends_is_cut_off(server):
    host, port = re.match(r"http://(.+):(\d+)", server.url).groups()
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-a: ")
        answer = b""
        try:
            for _ in range(100):
                connection.sendall(b"a" * 1000)
                time.sleep(0.001)
            answer = connection.recv(1000)
        except (ConnectionResetError, BrokenPipeError):  # it hung up without reading on
            answer = answer or b"HTTP/1.1 431"
    assert answer.startswith(b"HTTP/1.1 431")


def logged(server, request_id):
    """The line of the access log about a request."""
    lines = lambda: [line for line in server.log() if line["request_id"] == request_id]  # noqa: E731
    until(lines)
    return lines()[0]


def test_older_names_of_forms_are_read_and_not_said_to_be_ignored(server):
    body = {"prompt": "Once", "guided_choice": ["dog", "cat"], "top_secret": 1}
    response = post(server, "/v1/completions", body, headers={"x-request-id": "guided"})
    assert response.json()["choices"][0]["text"] in ("dog", "cat")
    assert logged(server, "guided")["ignored"] == ["top_secret"]
    assert post(server, "/v1/completions", {"prompt": "Once", "guided_regex": 1}).status_code == 400


def test_request_ids_and_the_access_log(server):
    response = post(server, "/v1/chat/completions", HELLO | {"user": "me"}, headers={"x-request-id": "my-id.1"})
    assert response.headers["x-request-id"] == "my-id.1"
    other = post(server, "/v1/chat/completions", HELLO, headers={"x-request-id": "<script>"})
    assert re.fullmatch("[0-9a-f]{32}", other.headers["x-request-id"])
    line = logged(server, "my-id.1")
    assert line["status"] == 200 and line["completion_tokens"] == 4 and line["finish_reason"] == ["length"]
    assert line["ignored"] == ["user"] and line["path"] == "/v1/chat/completions" and line["duration_ms"] > 0


def test_usage_on_each_chunk_when_asked(server):
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    response = post(server, "/v1/chat/completions", HELLO | options)
    events = [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]
    assert [event["usage"]["completion_tokens"] for event in events if event["choices"]][-1] == 4
    assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] > 4
    assert response.text.endswith("data: [DONE]\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")


def test_tokenize_and_back(server):
    answer = post(server, "/tokenize", {"prompt": "Once upon a time", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) and "".join(answer["token_strs"]) == "Once upon a time"
    assert answer["max_model_len"] == 2048
    assert post(server, "/detokenize", {"tokens": answer["tokens"]}).json() == {"prompt": "Once upon a time"}
    chat = post(server, "/tokenize", {"messages": [{"role": "user", "content": "<longcat_user>"}]}).json()
    assert chat["tokens"].count(5) == 1  # what users type is no tag


def test_metrics_have_vllms_names(server):
    before = server.metric("generation_tokens_total")
    assert post(server, "/v1/chat/completions", HELLO).status_code == 200
    assert server.metric("generation_tokens_total") >= before + 4
    for name in [
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total",
        "prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total", "request_success_total",
        "time_to_first_token_seconds_count", "request_time_per_output_token_seconds_count",
        "e2e_request_latency_seconds_count", "request_queue_time_seconds_count", "request_prompt_tokens_count",
    ]:  # fmt: skip
        assert f"longcat:{name}" in httpx.get(server.url + "/metrics").text, name
    until(lambda: server.metric("num_requests_running") == 0)


def test_pages_are_offline(server):
    for path in ("/", "/docs"):
        page = httpx.get(server.url + path)
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", page.text) and "default-src 'none'" in str(page.headers)
    assert "/v1/chat/completions" in httpx.get(server.url + "/docs").text
    description = httpx.get(server.url + "/openapi.json").json()
    assert "ChatRequest" in description["components"]["schemas"]


def test_timings_of_an_answer_and_of_its_stream(server):
    chat = {**HELLO, "temperature": 0}
    text = {"prompt": "Once upon a time", "max_tokens": 4, "temperature": 0}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", text)):
        whole = post(server, path, body).json()
        lines = post(server, path, body | {"stream": True}).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        told = [event["timings"] for event in events if "timings" in event]
        assert len(told) == 1 and "finish_reason" in events[-1]["choices"][0]
        for timings in (whole["timings"], told[0]):
            assert timings["predicted_n"] == 4 and timings["predicted_ms"] > 0
            assert timings["prompt_n"] + timings["cache_n"] == whole["usage"]["prompt_tokens"]


def test_log_probabilities_of_a_prompt(server):
    text = {"prompt": "Once upon a time", "max_tokens": 1, "prompt_logprobs": 2}
    [choice] = post(server, "/v1/completions", text).json()["choices"]
    ids = post(server, "/tokenize", {"prompt": text["prompt"]}).json()["tokens"]
    entries = choice["prompt_logprobs"]
    assert entries[0] is None and [str(id) in entry for id, entry in zip(ids[1:], entries[1:], strict=True)] == [
        True
    ] * (len(ids) - 1)
    assert all(len(entry) in (2, 3) and {"logprob", "rank", "decoded_token"} == set(one) for entry in entries[1:]
               for one in entry.values())  # fmt: skip
    chat = post(server, "/v1/chat/completions", HELLO | {"prompt_logprobs": 0}).json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    echoed = post(server, "/v1/completions", text | {"echo": True, "logprobs": 2}).json()["choices"][0]
    assert echoed["prompt_logprobs"] == entries
    for path, body, words in (
        ("/v1/completions", text | {"stream": True}, "prompt_logprobs is given with stream"),
        ("/v1/chat/completions", HELLO | {"prompt_logprobs": 21}, "at most 20"),
        ("/v1/completions", text | {"echo": True, "logprobs": 1}, "expected the same number"),
    ):
        refused = post(server, path, body)
        assert refused.status_code == 400 and words in refused.json()["error"]["message"]


def test_what_is_served_and_by_what(server):
    [model, *_] = httpx.get(server.url + "/v1/models").json()["data"]
    assert httpx.get(f"{server.url}/v1/models/{model['id']}").json() == model
    assert model["max_model_len"] == model["context_length"] == 2048 and model["object"] == model["type"] == "model"
    assert httpx.get(server.url + "/version").json() == {"version": longcat.__version__}
    props = httpx.get(server.url + "/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048 and "messages" in props["chat_template"]


def test_unknown_paths_and_methods(server):
    assert httpx.get(server.url + "/nowhere").json()["error"]["type"] == "not_found_error"
    assert httpx.get(server.url + "/v1/completions").status_code == 405
    for path in ("/health/", "/v1/models//"):  # no redirect, which would repeat the Host header
        assert httpx.get(server.url + path).status_code == 200
    for path in ("/health", "/ready", "/"):
        head = httpx.head(server.url + path)
        assert head.status_code == 200 and not head.content
    text = httpx.post(
        server.url + "/v1/completions", content=b'{"prompt": "x"}', headers={"content-type": "text/plain"}
    )
    assert text.status_code == 400  # what a page of another site could send unasked


def test_keys_cors_and_template(tiny, tmp_path):
    template = tmp_path / "hostile.jinja"
    template.write_text("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}")
    options = ["--api-key", "secret", "other", "--cors-origin", "https://a.example", "--chat-template", str(template)]
    with LiveServer(tiny, *options, env={"LONGCAT_API_KEY": "third"}) as server:
        for path in ("/health", "/ready", "/", "/page/main.js"):
            assert httpx.get(server.url + path).status_code == 200
        for path in ("/metrics", "/v1/models", "/docs", "/openapi.json", "/nowhere"):
            assert httpx.get(server.url + path).status_code == 401
        wrong = timed("wrong key", lambda: httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer x"}))
        assert wrong.status_code == 401 and wrong.json()["error"]["code"] == "invalid_api_key"
        for key in ("secret", "other", "third"):
            headers = {"Authorization": f"Bearer {key}"}
            assert httpx.get(server.url + "/v1/models", headers=headers).status_code == 200
            assert httpx.get(server.url + "/v1/models", headers={"x-api-key": key}).status_code == 200
        assert httpx.get(server.url + "/v1/models", headers={"Authorization": "Basic secret"}).status_code == 401
        refused = post(server, "/v1/messages", {}, headers={"x-api-key": "x"})
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        both = {"x-api-key": "secret", "Authorization": "Bearer x"}
        assert httpx.get(server.url + "/v1/models", headers=both).status_code == 200
        responses_are_kept_apart(server)
        assert post(server, "/render", {"text": "a"}).status_code == 401
        assert post(server, "/render", {"text": "a"}, headers=both | {"Authorization": ""}).status_code == 200
        assert "/render" not in {line["path"] for line in server.log()}  # ten a second would fill it

        asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        allowed = httpx.options(server.url + "/v1/completions", headers=asked)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://a.example"
        refused = httpx.options(server.url + "/v1/completions", headers=asked | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in refused.headers

        headers = {"Authorization": "Bearer secret"}
        hostile = timed("hostile template", lambda: post(server, "/v1/chat/completions", HELLO, headers=headers))
        assert hostile.status_code == 400 and "longer than 1 s" in hostile.json()["error"]["message"]
        text = {"prompt": "Once", "max_tokens": 2}
        assert post(server, "/v1/completions", text, headers=headers).status_code == 200


def responses_are_kept_apart(server):
    """With a template that fails no response ends, so the store is asked for what another key may not see."""
    for key in ("secret", "other"):
        missing = httpx.get(server.url + "/v1/responses/resp_1", headers={"x-api-key": key})
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "response_not_found"
    assert httpx.get(server.url + "/v1/responses/resp_1").status_code == 401


def test_empty_keys_are_refused(tiny, capsys):
    for key in ("", " "):
        assert main(["serve", tiny, "--host", "none.invalid", "--api-key", "good", key]) == 2
        assert "API key is empty" in capsys.readouterr().err


def test_there_is_no_cors_unless_asked_for(server):
    response = httpx.get(server.url + "/v1/models", headers={"Origin": "https://a.example"})
    assert "access-control-allow-origin" not in response.headers


@needs_openssl
def test_tls(tiny, tmp_path, capsys):
    certificate, key = make_certificate(tmp_path)
    mistakes_are_told_at_once(tmp_path, key, certificate, capsys)
    context = ssl.create_default_context(cafile=certificate)
    server = LiveServer(tiny, "--ssl-keyfile", key, "--ssl-certfile", certificate)
    try:
        server.wait_ready(verify=context)
        assert server.url.startswith("https://")
        assert httpx.get(server.url + "/v1/models", verify=context).status_code == 200
    finally:
        server.__exit__()


def mistakes_are_told_at_once(folder, key, certificate, capsys):
    """Before a model is loaded: there is none."""
    locked, none = str(folder / "locked.pem"), str(folder / "none.pem")
    subprocess.run(["openssl", "rsa", "-aes256", "-in", key, "-passout", "pass:sesame", "-out", locked], check=True,
                   capture_output=True)  # fmt: skip
    for certificate_file, key_file, more, found in [
        (none, key, [], f"--ssl-certfile {none}"),
        (certificate, certificate, [], f"--ssl-keyfile {certificate}"),
        (certificate, locked, [], f"--ssl-keyfile {locked}"),
        (certificate, locked, ["--ssl-keyfile-password", "open"], f"--ssl-keyfile {locked}"),
        (certificate, key, ["--ssl-ca-certs", none], f"--ssl-ca-certs {none}"),
        (certificate, locked, ["--ssl-keyfile-password", "sesame"], "nowhere does not exist"),
    ]:
        files = ["--ssl-certfile", certificate_file, "--ssl-keyfile", key_file, *more, "--port", "0"]
        assert main(["serve", str(folder / "nowhere"), *files]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and found in error, error


def test_flags_of_other_engines(tiny, capsys):
    flags = ["--trust-remote-code", "--tool-call-parser", "longcat", "--attention-backend", "flashinfer", "--tp", "1",
             "--mem-fraction-static", "0.9", "--max-running-requests", "8", "--skip-server-warmup",
             "--max-model-len", "64"]  # fmt: skip
    with LiveServer(tiny, *flags) as server:
        [said] = [line for line in server.lines if "ignored" in line]
        assert all(flag in said for flag in flags if flag.startswith(("--tr", "--to", "--at", "--sk")))
        assert "--gpu-memory-utilization (on the CPU)" in said
        fits = post(server, "/v1/completions", {"prompt": [100] * 63, "max_tokens": 9}).json()
        assert fits["usage"]["completion_tokens"] == 1 and fits["choices"][0]["finish_reason"] == "length"
        assert post(server, "/v1/completions", {"prompt": [100] * 64, "max_tokens": 1}).status_code == 400
    assert main(["serve", tiny, "--tp", "2"]) == 2
    assert "need 2 ranks, and this process was started alone: mpirun -n 2" in capsys.readouterr().err
    assert main(["serve", tiny, "--ssl-keyfile", "x"]) == 2
    capsys.readouterr()
    assert main(["serve", tiny, "--ssl-ca-certs", "x", "--host", "none.invalid"]) == 2
    assert "--ssl-ca-certs needs --ssl-certfile" in capsys.readouterr().err
    taken = socket.create_server(("127.0.0.1", 0))
    assert main(["serve", tiny, "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen" in capsys.readouterr().err
    taken.close()
