"""What the server's own work on a token costs in each API: PYTHONPATH=tests python bench/scripts/api_overhead.py

A stand-in for the engine makes tokens at once, and the application sends its events to a function. So all that is
measured is between the engine and the socket: reading the chunk, its events, JSON. The APIs take turns; each figure is
the median over the rounds of the processor's time for all streams of a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

from longcat.request.outputs import StreamChunk
from longcat.server.app import Application
from longcat.server.settings import ServerSettings

from support.stub_engine import StubEngine, whole_output

CHAT = "/v1/chat/completions"
TEXT = "Tell me a story."
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
BODIES = {
    CHAT: {
        "messages": [{"role": "user", "content": TEXT}],
        "tools": [{"type": "function", "function": TOOL}],
        "stream": True,
    },
    "/v1/messages": {
        "messages": [{"role": "user", "content": TEXT}],
        "tools": [{"name": "f", "input_schema": TOOL["parameters"]}],
        "max_tokens": 1 << 20,
        "stream": True,
    },
    "/v1/responses": {"input": TEXT, "tools": [TOOL | {"type": "function"}], "stream": True},
}


class FastEngine(StubEngine):
    """Makes a word a token, and lets others run after each."""

    def __init__(self, num_tokens: int):
        self._num_tokens = num_tokens

    async def agenerate(self, *, prompt_token_ids, sampling_params, request_id=None, group=None):
        output = whole_output(request_id, prompt_token_ids)
        for left in reversed(range(self._num_tokens if request_id else 1)):
            await asyncio.sleep(0)
            yield StreamChunk(" word", [1], finish_reason=None if left else "length", output=None if left else output)


async def stream(app: Application, path: str) -> bytes:
    """All that is sent for one request."""
    body, sent, forever = json.dumps(BODIES[path]).encode(), [], asyncio.Event()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        message = next(messages, None)
        if message is None:
            await forever.wait()
        return message

    async def send(message):
        sent.append(message.get("body", b""))

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": path, "query_string": b"",
        "raw_path": path.encode(), "root_path": "", "scheme": "http", "server": ("x", 1), "client": ("x", 1),
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    await app.asgi(scope, receive, send)
    return b"".join(sent)


async def measure(num_streams: int, num_tokens: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of processor time a token, by path and round."""
    app = Application(FastEngine(num_tokens), ServerSettings(("stub",), access_log=False))
    watch = asyncio.ensure_future(app.lifecycle.run())
    while app.lifecycle.state != "ready":
        await asyncio.sleep(0.01)
    found: dict[str, list[float]] = {path: [] for path in BODIES}
    for turn in range(rounds + 1):
        for path, figures in found.items():
            start = time.process_time()
            texts = await asyncio.gather(*(stream(app, path) for _ in range(num_streams)))
            seconds = time.process_time() - start
            assert all(text.count(b"word") >= num_tokens for text in texts), texts[0][-500:]
            if turn:  # the first is a warm-up
                figures.append(1e6 * seconds / (num_streams * num_tokens))
    watch.cancel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    found = asyncio.run(measure(args.streams, args.tokens, args.rounds))
    base = statistics.median(found[CHAT])
    for path, figures in found.items():
        middle = statistics.median(figures)
        print(
            f"{path:22} {middle:6.1f} us a token ({min(figures):.1f} to {max(figures):.1f}), "
            f"{middle / base:.2f} times chat's"
        )


if __name__ == "__main__":
    main()
