"""`longcat bench serve` and `bench startup`."""

import asyncio
import json
import socket

import pytest
from longcat.bench.load_generator import Load, Outcome, _Client, percentile, summary
from longcat.cli import main

VLLM_NAMES = ["duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput",
              "output_throughput", "total_token_throughput"] + [
    f"{figure}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el") for figure in ("mean", "median", "std", "p99")
]  # fmt: skip


def test_serve_counts_and_names(server, capsys):
    arguments = [
        "bench",
        "serve",
        "--base-url",
        server.url,
        "--num-prompts",
        "12",
        "--input-len",
        "20",
        "--output-len",
        "7",
    ]
    before = server.metric("generation_tokens_total")
    assert main([*arguments, "--max-concurrency", "4", "--request-rate", "200", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(VLLM_NAMES) <= set(result)
    assert (result["completed"], result["failed"]) == (12, 0)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (240, 84)
    assert server.metric("generation_tokens_total") - before == 84 + 7  # and one request before the clock starts
    assert 0 < result["median_ttft_ms"] <= result["median_e2el_ms"] <= result["p99_e2el_ms"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "Serving Benchmark Result" in text
    for line in ("Successful requests:", "Output token throughput (tok/s):", "Mean TTFT (ms):", "Median TPOT (ms):",
                 "P99 ITL (ms):", "Mean E2EL (ms):"):  # fmt: skip
        assert line in text


def test_figures_of_a_known_run():
    slow = Outcome(5, 3, [0.1, 0.2, 0.4], 0.4)
    fast = Outcome(5, 1, [0.2], 0.2)
    result = summary(2.0, [slow, fast, Outcome(5, error="refused")])
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (2, 1, 4)
    assert result["output_throughput"] == 2 and result["total_token_throughput"] == 7
    assert result["mean_ttft_ms"] == pytest.approx(150) and result["mean_tpot_ms"] == pytest.approx(150)
    assert result["median_itl_ms"] == pytest.approx(150) and result["median_e2el_ms"] == pytest.approx(300)
    assert percentile([0.0, 1.0, 2.0], 99) == pytest.approx(1.98) and percentile([3.0], 99) == 3


@pytest.mark.parametrize(
    ("choice", "error"),
    [
        ({"finish_reason": "length"}, None),
        ({"finish_reason": "abort"}, "the completion ended with abort"),
        ({"finish_reason": "error", "error": "not a number"}, "not a number"),
    ],
)
def test_completions_that_failed_are_no_successes(choice, error):
    events = [{"choices": [{"finish_reason": None}]}, {"choices": [choice]},
              {"choices": [], "usage": {"completion_tokens": 2}}]  # fmt: skip
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    async def reply(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + body.encode())
        writer.close()

    async def ask():
        async with await asyncio.start_server(reply, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            return await _Client(Load(f"http://127.0.0.1:{port}")).stream({"prompt": [1, 2]})

    outcome = asyncio.run(ask())
    assert outcome.error == error and outcome.output_tokens == 2


def test_mistakes_are_told_in_one_line(server, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for arguments, code, message in [
        (["--port", str(port)], 1, "does not respond"),
        (["--base-url", server.url, "--model", "other"], 1, "other"),
        (["--base-url", server.url, "--input-len", "9999"], 1, "max_model_len=2048"),
        (["--base-url", server.url, "--num-prompts", "0"], 2, "--num-prompts 0"),
        (["--base-url", server.url, "--max-concurrency", "0"], 2, "--max-concurrency 0"),
        (["--base-url", "ftp://x"], 2, "ftp://x"),
        (["--base-url", "http://x:abc"], 2, "base_url='http://x:abc'"),
        (["--base-url", "http://[::1"], 2, "base_url='http://[::1'"),
    ]:
        assert main(["bench", "serve", *arguments]) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error


def test_startup(tiny, tmp_path, capsys):
    assert main(["bench", "startup", tiny, "--num-iters", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"import", "load", "first_token", "whole_process"}
    assert result["load"]["mean"] < result["whole_process"]["mean"]
    assert main(["bench", "startup", tiny, "--num-iters", "1", "--quantization", "fp8"]) == 0
    assert "first token" in capsys.readouterr().out
    assert main(["bench", "startup", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("longcat: [config] ")
    assert main(["bench", "startup", tiny, "--kv-cache-memory", "10kB"]) == 1
    assert capsys.readouterr().err.startswith("longcat: [kv cache] 10000 bytes")
