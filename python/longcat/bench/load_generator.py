"""Sends requests to an OpenAI-compatible completions server and times them. Figures have vLLM's names."""

from __future__ import annotations

import asyncio
import json
import math
import random
import ssl
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from longcat._core import Error
from longcat.support.json_types import JsonObject

# Random prompts are made of the ids of these words, which the server tokenizes.
_WORDS = "once upon a time there was little girl who found red ball near the big house and ran home to tell her mother"


@dataclass
class Load:
    """The load for a server.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        model: its name on the server; None: the first that the server lists.
        num_prompts: number of requests.
        input_len, output_len: [tokens] per request.
        request_rate: mean arrivals per second, at random times; inf: all at once.
        max_concurrency: maximum number of requests in progress; None: no limit.
        seed: of prompts and arrivals.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    num_prompts: int = 100
    input_len: int = 128
    output_len: int = 64
    request_rate: float = math.inf
    max_concurrency: int | None = None
    temperature: float = 0.0
    seed: int = 0


@dataclass
class Outcome:
    """The result of one request, with times of its chunks [s] from its start."""

    prompt_tokens: int
    output_tokens: int = 0
    chunk_times: list[float] = field(default_factory=list)
    end: float = 0.0
    error: str | None = None

    @property
    def ttft(self) -> float:
        return self.chunk_times[0]

    @property
    def itl(self) -> list[float]:
        return [b - a for a, b in zip(self.chunk_times, self.chunk_times[1:], strict=False)]


async def run(load: Load, on_done: Callable[[Outcome], None] = lambda outcome: None) -> tuple[float, list[Outcome]]:
    """Sends the requests. Returns the elapsed seconds and the result of each request.

    Raises:
        longcat.Error: the server does not respond, or refuses the first request.
    """
    client = _Client(load)
    model = load.model or (await client.json("GET", "/v1/models"))["data"][0]["id"]
    pool = (await client.json("POST", "/tokenize", {"model": model, "prompt": _WORDS}))["tokens"]
    rng = random.Random(load.seed)
    bodies = [
        {
            "model": model,
            "prompt": [rng.choice(pool) for _ in range(load.input_len)],
            "max_tokens": load.output_len,
            "temperature": load.temperature,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(load.num_prompts)
    ]
    warm_up = await client.stream(bodies[0])
    if warm_up.error:
        raise Error(f"[bench] {load.url}: {warm_up.error}")
    slots = asyncio.Semaphore(load.max_concurrency or load.num_prompts)

    async def one(body: dict[str, object]) -> Outcome:
        async with slots:
            outcome = await client.stream(body)
        on_done(outcome)
        return outcome

    start, tasks, due = time.perf_counter(), [], 0.0
    for body in bodies:
        if math.isfinite(load.request_rate):
            due += rng.expovariate(load.request_rate)
            await asyncio.sleep(start + due - time.perf_counter())
        tasks.append(asyncio.ensure_future(one(body)))
    outcomes = await asyncio.gather(*tasks)
    return time.perf_counter() - start, outcomes


def summary(seconds: float, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """vLLM's figures for a run; times in ms."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    total_input = sum(outcome.prompt_tokens for outcome in done)
    total_output = sum(outcome.output_tokens for outcome in done)
    result: dict[str, float] = {
        "duration": seconds,
        "completed": len(done),
        "failed": len(outcomes) - len(done),
        "total_input_tokens": total_input,
        "total_output_tokens": total_output,
        "request_throughput": len(done) / seconds,
        "output_throughput": total_output / seconds,
        "total_token_throughput": (total_input + total_output) / seconds,
    }
    for name, values in [
        ("ttft", [outcome.ttft for outcome in done]),
        ("tpot", [(o.end - o.ttft) / (o.output_tokens - 1) for o in done if o.output_tokens > 1]),
        ("itl", [gap for outcome in done for gap in outcome.itl]),
        ("e2el", [outcome.end for outcome in done]),
    ]:
        ordered = sorted(values) or [math.nan]
        result[f"mean_{name}_ms"] = 1000 * statistics.fmean(ordered)
        result[f"median_{name}_ms"] = 1000 * statistics.median(ordered)
        result[f"std_{name}_ms"] = 1000 * statistics.pstdev(ordered)
        result[f"p99_{name}_ms"] = 1000 * percentile(ordered, 99)
    return result


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Percentile of sorted values, interpolated between the two nearest."""
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class _Client:
    """A small client with one connection per request, so that the measured time is the server's."""

    def __init__(self, load: Load):
        try:
            parts = urlsplit(load.url if "://" in load.url else f"http://{load.url}")
            host, port = parts.hostname, parts.port
        except ValueError:  # the port is not a number, or the IPv6 address is incomplete
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise ValueError(f"base_url={load.url!r}; expected http://HOST:PORT")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host, self._port = host, port or (443 if self._tls else 80)
        self._base = parts.path.rstrip("/")
        self._url = load.url
        self._key = f"Authorization: Bearer {load.api_key}\r\n" if load.api_key else ""

    async def _send(
        self, method: str, path: str, body: object
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {self._base}{path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n{self._key}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=1 << 24)
        writer.write(head.encode() + data)
        status = int((await reader.readline()).split()[1])
        while (await reader.readline()).strip():
            pass
        return reader, writer, status

    async def json(self, method: str, path: str, body: object = None) -> Any:
        try:
            reader, writer, status = await self._send(method, path, body)
            text = (await reader.read()).decode(errors="replace")
            writer.close()
        except (OSError, ValueError, IndexError) as error:
            raise Error(f"[bench] {self._url} does not respond: {error or type(error).__name__}") from None
        if status != 200:
            raise Error(f"[bench] {self._url}{path}: status {status}: {_message(text)}")
        return json.loads(_object(text))

    async def stream(self, body: JsonObject) -> Outcome:
        outcome = Outcome(len(body["prompt"]))
        start = time.perf_counter()
        try:
            reader, writer, status = await self._send("POST", "/v1/completions", body)
            if status != 200:
                outcome.error = f"status {status}: {_message((await reader.read()).decode(errors='replace'))}"
            async for line in reader:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter() - start
                event = json.loads(line[6:])
                if event.get("usage"):
                    outcome.output_tokens = event["usage"]["completion_tokens"]
                for choice in event["choices"]:
                    outcome.chunk_times.append(now)
                    outcome.end = now
                    if choice["finish_reason"] in ("abort", "error"):
                        outcome.error = choice.get("error") or f"the completion ended with {choice['finish_reason']}"
            writer.close()
        except (OSError, ValueError, IndexError, KeyError) as error:
            outcome.error = str(error) or type(error).__name__
        if outcome.error is None and not (outcome.chunk_times and outcome.output_tokens):
            outcome.error = "the stream ended early"
        return outcome


def _object(text: str) -> str:
    """The JSON object in a body, without the chunk sizes of chunked encoding around it."""
    return text[text.find("{") : text.rfind("}") + 1]


def _message(text: str) -> str:
    try:
        return str(json.loads(_object(text))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
