"""The server's log: banner, addresses, lines of requests, summary; levels and formats."""

import json
import logging
import re
import socket

import httpx
import pytest
from longcat.server import logs
from longcat.server.settings import ServerSettings

from support.live import LiveServer, until

INFO = {
    "architecture": "LongcatFlashNgramForCausalLM",
    "device": "cpu",
    "dtype": "BF16",
    "kv_cache_dtype": "INT8",
    "max_model_len": 2048,
    "num_kv_blocks": 512,
    "kv_cache_bytes": 31_650_048,
    "num_threads": 2,
    "world_size": 1,
    "weight_bytes": 14_510_016,
    "table_bytes": 7_868_928,
}
FACTS = {
    "request_id": "0ab1",
    "client": "127.0.0.1",
    "method": "POST",
    "path": "/v1/completions",
    "status": 200,
    "duration_ms": 81.3,
}
SETTINGS = ServerSettings(("tiny", "other"))


@pytest.fixture
def written(capsys):
    """Lines of the log so far; the loggers are put back."""
    root, ours = logging.getLogger(), logging.getLogger("longcat")
    levels, handlers = (root.level, ours.level), list(root.handlers)
    yield lambda: capsys.readouterr().err.splitlines()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_the_banner_says_what_is_served_and_what_it_takes():
    text = "\n".join(logs.banner("models/tiny", INFO, SETTINGS, 16))
    for said in (
        "serves tiny, other",
        "models/tiny",
        "bf16",
        "14.51 MB of weights, 7.87 MB of it N-gram tables",
        "context 2,048 tokens",
        "16 requests at once",
        "31.65 MB in int8: 32,768 tokens",
        "cpu, 2 threads",
    ):
        assert said in text, said
    assert "ranks" not in text and "8 ranks" in "\n".join(logs.banner("m", INFO | {"world_size": 8}, SETTINGS, 1))
    way = {"world_size": 8, "all_reduce": "sums by NCCL (not over peer memory: ranks are on several machines)"}
    assert "8 ranks, sums by NCCL (not over peer" in "\n".join(logs.banner("m", INFO | way, SETTINGS, 1))


@pytest.mark.parametrize(
    "host, keys, is_open",
    [
        ("127.0.0.1", (), False),
        ("0.0.0.0", (), True),
        ("0.0.0.0", ("k",), False),
        ("::1", (), False),
        ("::", (), True),
    ],
)
def test_an_open_address_without_a_key_is_warned_of(host, keys, is_open):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 here")
    with sock:
        port = sock.getsockname()[1]
        lines, warning = logs.address_lines(sock, "https", ServerSettings(("x",), keys))
    shown = f"[{host}]" if ":" in host else host
    assert lines[0] == f"listening on https://{shown}:{port}"
    assert any(f"https://127.0.0.1:{port}" in line for line in lines) or host not in ("0.0.0.0", "::")
    assert (warning is not None) == is_open and (not is_open or f"--host {host} without --api-key" in str(warning))


@pytest.mark.parametrize(
    "more, text",
    [
        ({}, "POST /v1/completions 200, 81.3 ms, from 127.0.0.1, id 0ab1"),
        (
            {"prompt_tokens": 5, "completion_tokens": 16, "finish_reason": ["length", "stop", "stop"]},
            "POST /v1/completions 200, 81.3 ms, 5 + 16 tokens, length stop, from 127.0.0.1, id 0ab1",
        ),
        ({"ignored": ["user"]}, "POST /v1/completions 200, 81.3 ms, ignored ['user'], from 127.0.0.1, id 0ab1"),
        ({"path": "/a\n\x1b[2Jb"}, r"POST /a\n\x1b[2Jb 200, 81.3 ms, from 127.0.0.1, id 0ab1"),
    ],
)
def test_a_request_is_a_line(written, more, text):
    logs.set_up(logs.LogOptions())
    logs.log_request(FACTS | more)
    [line] = written()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO " + re.escape(text), line)
    logs.set_up(logs.LogOptions(format="json"))
    logs.log_request(FACTS | more)
    [line] = written()
    assert json.loads(line).items() >= {**FACTS, **more, "level": "info", "message": text}.items()


def test_levels(written):
    for level, shown in [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e"), ("critical", "")]:
        logs.set_up(logs.LogOptions(level))
        for log in (logs.log.debug, logs.log.info, logs.log.warning, logs.log.error):
            log("%s", log.__name__)
        assert "".join(line.split()[-1][0] for line in written()) == shown
        logs.log_request(FACTS)
        assert bool(written()) == ("i" in shown)


class Counters:
    """Engine.metrics() of an engine that is told what happened."""

    def __init__(self):
        self.values = dict.fromkeys(("num_running", "num_waiting", "num_prompt_tokens", "num_generated_tokens"), 0)
        self.values |= {"num_kv_blocks": 200, "num_free_blocks": 200}

    def metrics(self):
        return dict(self.values)


def test_the_summary_is_there_while_requests_run():
    engine = Counters()
    summary = logs.Summary(engine)
    assert summary.line(100.0) is None and summary.line(110.0) is None  # idle
    engine.values |= {"num_running": 2, "num_waiting": 1, "num_prompt_tokens": 300, "num_generated_tokens": 50}
    engine.values["num_free_blocks"] = 150
    assert summary.line(120.0) == (
        "2 running, 1 waiting; prompts 30.0 tokens/s, answers 5.0 tokens/s; 25.0% of the latent cache in use"
    )
    engine.values |= {"num_running": 0, "num_waiting": 0, "num_generated_tokens": 60}  # ended meanwhile
    assert "answers 2.0 tokens/s" in summary.line(125.0)
    assert summary.line(130.0) is None
    engine.metrics = lambda: (_ for _ in ()).throw(RuntimeError("closed"))
    assert summary.line(140.0) is None


def test_probes_are_not_logged(server):
    num_lines = len(server.log())
    probes = ["/health", "/ready", "/metrics", "/v1/models"]
    for path in probes:
        assert httpx.get(server.url + path).status_code == 200

    def logged():  # lines of earlier requests may come late
        return [line["path"] for line in server.log()[num_lines:] if line["path"] in probes]

    until(logged)
    assert logged() == ["/v1/models"]


def test_a_server_says_what_it_serves(tiny):
    with LiveServer(tiny, "--host", "0.0.0.0", "--log-format", "text", "--log-level", "info") as server:
        text = "".join(server.lines)
        for said in (
            tiny,
            "context 2,048 tokens",
            "latent cache",
            "INFO listening on",
            "WARNING --host 0.0.0.0 without",
        ):
            assert said in text, said
        assert "{" not in text
        httpx.get(server.url + "/v1/models")
        until(lambda: any("GET /v1/models 200" in line for line in server.lines))
