"""`longcat top`: readings of a running server, as a line, as JSON and as a screen; a dead server is one line."""

import json
import sys

import httpx
import pytest
from longcat.cli import main
from longcat.cli.commands.top import Reading, Sample, line, reading, table

from support.terminal import Terminal


def complete(url: str, tokens: int) -> None:
    body = {"prompt": "Once", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    httpx.post(url + "/v1/completions", json=body, timeout=60).raise_for_status()


def test_one_reading_of_a_server_as_json(server, capsys):
    complete(server.url, 20)
    assert main(["top", server.url, "--once", "--json", "--interval", "0.05"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "longcat-tiny" and found["requests_finished"] >= 1 and found["memory_bytes"] > 1 << 20
    assert 0 <= found["cache_usage"] <= 1 and found["running"] == found["waiting"] == 0
    assert found["seconds_to_first_token"] > 0 and found["draft_acceptance"] is None


def test_a_pipe_gets_plain_lines(server, capsys):
    assert main(["top", server.url.removeprefix("http://"), "--once", "--interval", "0.01"]) == 0
    [text] = capsys.readouterr().out.splitlines()
    assert text.startswith("running 0, waiting 0, ") and "cache " in text and "\x1b" not in text


def test_a_terminal_gets_a_screen_until_ctrl_c(server):
    terminal = Terminal([sys.executable, "-m", "longcat", "top", server.url, "--interval", "0.05"], {"TERM": "xterm"})
    for _ in range(2):  # it is drawn again and again
        shown = terminal.wait_for("Ctrl-C ends this.")
        assert "longcat-tiny at http" in shown and "requests" in shown and "tokens/s" in shown
    terminal.write("\x03")
    assert terminal.end() == 0 and "Traceback" not in terminal.shown


def test_rates_are_those_of_the_interval():
    before = Sample(10.0, {"generation_tokens_total": 100, "spec_decode_num_draft_tokens_total": 10})
    after = Sample(
        12.0,
        {
            "generation_tokens_total": 150,
            "prompt_tokens_total": 8,
            "num_requests_running": 3,
            "num_requests_waiting": 2,
            "kv_cache_usage_perc": 0.25,
            "spec_decode_num_draft_tokens_total": 30,
            "spec_decode_num_accepted_tokens_total": 15,
            "process_resident_memory_bytes": 2e9,
        },
    )
    found = reading(before, after)
    assert (found.generated_per_second, found.prompt_per_second, found.running, found.waiting) == (25, 4, 3, 2)
    assert found.draft_acceptance == 0.75 and found.prefix_hit_share is None
    assert "25.0 tokens/s" in line(found) and "drafts accepted 75%" in line(found) and "memory 2.00 GB" in line(found)


def test_the_screen_names_what_was_not_counted():
    class Known:
        model, url, build, context = "m", "u", "b", 2048

    rows = "\n".join(table(Known, Reading(1, 0, 2.0, 0.0, 3, 0.5, None, None, 0, 0, None)))
    assert "1 running, 0 waiting, 3 finished" in rows and "50%" in rows and "first token  -" in rows


@pytest.mark.parametrize(
    "url, said",
    [
        ("http://127.0.0.1:9", "[top] no server at http://127.0.0.1:9: Connection refused. Start one: longcat serve"),
        ("http://nowhere.invalid", "[top] no server at http://nowhere.invalid"),
    ],
)
def test_a_dead_server_is_one_line(capsys, url, said):
    assert main(["top", url, "--once"]) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_server_with_a_key_asks_for_it(tiny, capsys, monkeypatch):
    from support.live import LiveServer

    with LiveServer(tiny, "--api-key", "k") as live:
        assert main(["top", live.url, "--once"]) == 1
        assert "asks for a key; expected --api-key or LONGCAT_API_KEY" in capsys.readouterr().err
        monkeypatch.setenv("LONGCAT_API_KEY", "k")
        assert main(["top", live.url, "--once", "--interval", "0.01"]) == 0
