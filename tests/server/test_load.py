"""Many streams at once: nothing lost, doubled or mixed up, memory given back; and how soon a token is sent.

LONGCAT_STREAMS=5000 runs the first test with that many streams in place of 100.
"""

import asyncio
import json
import os
import re
import time
from statistics import median

import longcat
import pytest
from longcat.request.outputs import StreamChunk
from longcat.server.app import Application
from longcat.server.settings import ServerSettings

from support.live import LiveServer, until
from support.stub_engine import StubEngine, whole_output

NUM_STREAMS = int(os.environ.get("LONGCAT_STREAMS", "100"))
NUM_TOKENS = 24
PROMPTS = [f"Once upon a time there was a {animal}" for animal in "dog cat bird fish boy girl bear frog".split()]


async def sent(port: int, path: str, body: dict) -> bytes:
    """All events that come for a body."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    raw = await reader.read(-1)
    writer.close()
    assert raw.startswith(b"HTTP/1.1 200"), raw[:300]
    return re.sub(rb"\r\n[0-9a-f]+\r\n", b"", raw)


async def stream(port: int, index: int) -> tuple[str, int, list[str]]:
    """Text, number of chunks and ends of one stream, by a client that does no more than it has to."""
    body = {"prompt": PROMPTS[index % len(PROMPTS)], "temperature": 0, "max_tokens": NUM_TOKENS, "stream": True,
            "ignore_eos": True, "logprobs": 0}  # fmt: skip
    raw = await sent(port, "/v1/completions", body)
    events = re.findall(rb"data: (.*)\n\n", raw)
    assert events.pop() == b"[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    tokens = sum(len(choice["logprobs"]["tokens"]) for choice in choices if choice["logprobs"])
    return "".join(c["text"] for c in choices), tokens, [c["finish_reason"] for c in choices if c["finish_reason"]]


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process."""
    with open(f"/proc/{pid}/status") as file:
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", file.read())[1])


@pytest.mark.slow
def test_many_streams(tiny):
    with longcat.Engine(tiny) as engine:
        options = dict(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
        expected = [output.text for output in engine.generate(PROMPTS, **options)]
    arguments = ["--max-running-requests", "64", "--max-queued-requests", "10000", "--disable-access-log"]
    with LiveServer(tiny, *arguments) as server:
        port = int(server.url.rsplit(":", 1)[1])

        async def all_streams():
            return await asyncio.gather(*(stream(port, index) for index in range(NUM_STREAMS)))

        memory = []
        for _ in range(3):
            start = time.perf_counter()
            results = asyncio.run(all_streams())
            seconds = time.perf_counter() - start
            for index, (text, tokens, ends) in enumerate(results):
                assert (text, tokens, ends) == (expected[index % len(PROMPTS)], NUM_TOKENS, ["length"]), index
            memory.append(anonymous_bytes(server.process.pid))
        until(lambda: server.metric("num_requests_running") == 0)
        assert server.metric("kv_cache_usage_perc") < 0.5
        growth = memory[2] / memory[1] - 1
        print(
            f"{NUM_STREAMS} streams of {NUM_TOKENS} tokens: {seconds:.1f} s, {NUM_STREAMS * NUM_TOKENS / seconds:.0f} "
            f"tokens/s; RssAnon {', '.join(f'{m / 2**20:.1f}' for m in memory)} MiB, last round {100 * growth:+.2f} %"
        )
        assert growth < 0.05


def agent_bodies(prompt: str) -> dict[str, dict]:
    """A streamed request in each of the APIs for agents."""
    message, shared = {"role": "user", "content": prompt}, {"temperature": 0, "ignore_eos": True, "stream": True}
    return {
        "/v1/chat/completions": {"messages": [message], "max_tokens": NUM_TOKENS, **shared},
        "/v1/messages": {"messages": [message], "max_tokens": NUM_TOKENS, **shared},
        "/v1/responses": {"input": prompt, "max_output_tokens": NUM_TOKENS, **shared},
    }


def text_of(path: str, events: list[dict]) -> tuple[str, int, str]:
    """Text, number of tokens and end of one stream."""
    if path == "/v1/messages":
        texts = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
        *_, last, stop = events
        assert stop["type"] == "message_stop"
        return "".join(texts), last["usage"]["output_tokens"], last["delta"]["stop_reason"]
    if path == "/v1/responses":
        texts = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        response = events[-1]["response"]
        assert response["output"][0]["content"][0]["text"] == "".join(texts)
        return "".join(texts), response["usage"]["output_tokens"], response["incomplete_details"]["reason"]
    texts = [event["choices"][0]["delta"].get("content") or "" for event in events]
    return "".join(texts), events[-1]["timings"]["predicted_n"], events[-1]["choices"][0]["finish_reason"]


@pytest.mark.slow
def test_many_streams_of_agents(tiny):
    """LONGCAT_STREAMS of them at once in each API: all have the text that chat gives to one alone."""
    ends = {"/v1/chat/completions": "length", "/v1/messages": "max_tokens", "/v1/responses": "max_output_tokens"}
    with LiveServer(tiny, "--max-running-requests", "64", "--disable-access-log") as server:
        port = int(server.url.rsplit(":", 1)[1])

        async def one(path: str, index: int) -> tuple[str, int, str]:
            raw = await sent(port, path, agent_bodies(PROMPTS[index % len(PROMPTS)])[path])
            return text_of(path, [json.loads(event) for event in re.findall(rb"data: ({.*})\n", raw)])

        async def many(path: str, count: int) -> list[tuple[str, int, str]]:
            return await asyncio.gather(*(one(path, index) for index in range(count)))

        expected = [text for text, _, _ in asyncio.run(many("/v1/chat/completions", len(PROMPTS)))]
        for path, end in ends.items():
            start = time.perf_counter()
            for index, found in enumerate(asyncio.run(many(path, NUM_STREAMS))):
                assert found == (expected[index % len(PROMPTS)], NUM_TOKENS, end), (path, index)
            seconds = time.perf_counter() - start
            print(f"{path}: {NUM_STREAMS} streams of {NUM_TOKENS} tokens, none lost, in {seconds:.1f} s")
        until(lambda: server.metric("num_requests_running") == 0)


class TimedEngine(StubEngine):
    """Makes tokens at a fixed rate; a token's text is the time at which it was made."""

    def __init__(self, interval: float, num_tokens: int):
        self._interval = interval
        self._num_tokens = num_tokens

    async def agenerate(self, *, prompt_token_ids, sampling_params, request_id=None, group=None):
        output = whole_output(request_id, prompt_token_ids)
        due = time.perf_counter() + self._interval * (hash(request_id) % 100) / 100
        for left in reversed(range(self._num_tokens if request_id else 1)):
            due += self._interval
            await asyncio.sleep(due - time.perf_counter())
            text = f"{time.perf_counter()!r} "
            yield StreamChunk(text, [1], finish_reason=None if left else "length", output=None if left else output)


def test_a_token_is_sent_soon_after_it_was_made():
    delays = []

    async def client(app):
        body = json.dumps({"prompt": "x", "stream": True, "max_tokens": 100}).encode()
        sent = False
        forever = asyncio.Event()

        async def receive():
            nonlocal sent
            if sent:
                await forever.wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            now = time.perf_counter()
            delays.extend(now - float(made) for made in re.findall(rb'"text":"([\d.]+) "', message.get("body", b"")))

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/completions", "query_string": b"",
            "raw_path": b"/v1/completions", "root_path": "", "scheme": "http", "server": ("x", 1), "client": ("x", 1),
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip
        await app.asgi(scope, receive, send)

    async def run():
        app = Application(TimedEngine(0.02, 100), ServerSettings(("stub",), access_log=False))
        watch = asyncio.ensure_future(app.lifecycle.run())
        while app.lifecycle.state != "ready":
            await asyncio.sleep(0.01)
        await asyncio.gather(*(client(app) for _ in range(64)))
        watch.cancel()

    asyncio.run(run())
    assert len(delays) == 6400
    delays.sort()
    print(
        f"64 streams of 50 tokens/s: sent - made p50 {1000 * median(delays):.3f} ms, p90 {1000 * delays[5760]:.3f} ms, "
        f"p99 {1000 * delays[6336]:.3f} ms"
    )
