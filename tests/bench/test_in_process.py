"""`longcat bench latency` and `bench throughput`."""

import json

import pytest
from longcat.bench.in_process import PERCENTILES
from longcat.cli import main


def test_latency(tiny, capsys):
    command = ["bench", "latency", tiny, "--batch-size", "3", "--input-len", "9", "--output-len", "4"]
    assert main([*command, "--num-iters", "5", "--num-iters-warmup", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["latencies"]) == 5 and set(result["percentiles"]) == {str(p) for p in PERCENTILES}
    assert min(result["latencies"]) <= result["percentiles"]["50"] <= max(result["latencies"])
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 5)
    assert main([*command, "--num-iters", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Avg latency: ") and lines[-1].startswith("99% percentile latency: ")


def test_throughput(tiny, capsys):
    command = ["bench", "throughput", tiny, "--num-prompts", "6", "--input-len", "9", "--output-len", "4"]
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_requests"], result["total_num_tokens"]) == (6, 6 * 13)
    assert result["tokens_per_second"] == pytest.approx(6 * 13 / result["elapsed_time"])
    assert result["output_tokens_per_second"] == pytest.approx(6 * 4 / result["elapsed_time"])
    assert main(command) == 0
    assert "requests/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["latency", "--batch-size", "0"], "--batch-size 0; expected an integer, 1 or more"),
        (["throughput", "--num-prompts", "-1"], "--num-prompts -1; expected an integer, 1 or more"),
        (["latency", "--input-len", "4000"], "2048"),
    ],
)
def test_what_is_refused(tiny, capsys, arguments, error):
    assert main(["bench", arguments[0], tiny, *arguments[1:]]) in (1, 2)
    assert error in capsys.readouterr().err
