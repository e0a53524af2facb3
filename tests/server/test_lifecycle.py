"""Starting, draining, dying; clients that leave, and clients that do not read. Each prints the time it took."""

import asyncio
import json
import signal
import socket
import threading
import time

import httpx
import pytest

from support.live import LiveServer, descendants, is_running, until

LONG = {"messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 1900, "ignore_eos": True}
HELD = LONG | {"n": 8}  # seconds, where LONG is a moment for this model: 8 requests that run
SHORT = LONG | {"max_tokens": 2}
CHAT = "/v1/chat/completions"


@pytest.fixture
def own(tiny):
    """Starts servers for a test that ends them."""
    servers = []

    def start(*arguments, **options):
        servers.append(LiveServer(tiny, *arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture(scope="module")
def eight_at_a_time(tiny):
    with LiveServer(tiny, "--max-running-requests", "8", "--no-enable-prefix-caching") as server:
        yield server


class Reader(threading.Thread):
    """Reads a stream to its end."""

    def __init__(self, server, body=LONG):
        super().__init__(daemon=True)
        self.events, self.error, self.started = [], None, threading.Event()
        self._url, self._body = server.url + CHAT, body | {"stream": True}
        self.start()
        assert self.started.wait(30)

    def run(self):
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        self.events.append(line[6:])
                        if len(self.events) == 3:
                            self.started.set()
        except httpx.HTTPError as error:
            self.error = error

    def finish_reason(self):
        self.join(60)
        assert self.error is None and self.events[-1] == "[DONE]"
        return json.loads(self.events[-2])["choices"][0]["finish_reason"]


def test_ready_after_a_first_token(own):
    start = time.perf_counter()
    server = own()
    states = []

    def is_ready():
        response = httpx.get(server.url + "/ready")
        states.append(response.status_code)
        if response.status_code != 200:
            refused = httpx.post(server.url + CHAT, json=SHORT).status_code == 503
            assert refused or httpx.get(server.url + "/ready").status_code == 200  # since just now
        return response.status_code == 200

    until(is_ready)
    print(f"ready {time.perf_counter() - start:.2f} s after the start")
    assert set(states) <= {503, 200} and server.metric("generation_tokens_total") >= 1


def test_sigterm_lets_requests_finish(own):
    server = own().wait_ready()
    reader = Reader(server, HELD | {"max_tokens": 1000})
    with httpx.Client() as client:  # a connection from before
        client.get(server.url + "/health")
        server.process.send_signal(signal.SIGTERM)
        failed = until(lambda: client.get(server.url + "/ready").status_code == 503)
        refused = client.post(server.url + CHAT, json=SHORT)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert client.get(server.url + "/health").status_code == 200
    start = time.perf_counter()
    assert reader.finish_reason() == "length" and server.process.wait(30) == 0
    seconds = time.perf_counter() - start
    print(f"not ready {1000 * failed:.0f} ms after SIGTERM; drained and gone {seconds:.2f} s later")


@pytest.mark.parametrize("how", ["timeout", "second signal"])
def test_what_does_not_finish_is_aborted_with_a_last_chunk(own, how):
    server = own("--shutdown-timeout", "0.5" if how == "timeout" else "30").wait_ready()
    reader = Reader(server, HELD)
    whole = []
    body = HELD | {"stream": False}
    other = threading.Thread(target=lambda: whole.append(httpx.post(server.url + CHAT, json=body, timeout=60).json()))
    other.start()
    until(lambda: server.metric("num_requests_running") == 16)
    start = time.perf_counter()
    server.process.send_signal(signal.SIGTERM)
    if how == "second signal":
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
    assert reader.finish_reason() == "abort" and server.process.wait(30) == 0
    other.join(10)
    assert whole[0]["choices"][0]["finish_reason"] == "abort" and whole[0]["choices"][0]["message"]["content"]
    print(f"{how}: gone {time.perf_counter() - start:.2f} s after SIGTERM")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_gives_its_memory_back(eight_at_a_time, phase, stream):
    server = eight_at_a_time
    num_lines = len(server.log())
    first = Reader(server, HELD | {"max_tokens": 600}) if phase == "queued" else None
    if first is not None:
        until(lambda: server.metric("num_requests_running") == 8)
    body = HELD | {"stream": stream}
    if phase == "prefill":
        body |= {"messages": [{"role": "user", "content": "a dog " * 900}], "max_tokens": 200}
    counter = "prompt_tokens_total" if phase == "prefill" else "generation_tokens_total"
    before = server.metric(counter)
    connection = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    gauge = "num_requests_waiting" if phase == "queued" else "num_requests_running"
    if phase == "queued":
        until(lambda: server.metric(gauge) == 1)
    else:
        until(lambda: server.metric(counter) > before)
    start = time.perf_counter()
    connection.close()
    until(lambda: server.metric(gauge) == 0)
    seconds = time.perf_counter() - start
    if first is None:
        assert server.metric("kv_cache_usage_perc") == 0
    else:
        assert first.is_alive()
    print(f"{phase}, {'stream' if stream else 'whole'}: freed {1000 * seconds:.0f} ms after the client left")
    assert seconds < 5
    if first is not None:
        assert first.finish_reason() == "length"
    ended = lambda: [line for line in server.log()[num_lines:] if line["path"] == CHAT and "finish_reason" not in line]  # noqa: E731
    until(ended)
    assert ended()[0]["status"] == (200 if stream else 499)


@pytest.mark.slow
def test_overload_is_told_at_once(own):
    server = own("--max-running-requests", "8", "--max-queued-requests", "2").wait_ready()
    readers = [Reader(server, LONG | {"max_tokens": 1000}) for _ in range(8)]
    until(lambda: server.metric("num_requests_running") == 8)
    waiting = LONG | {"max_tokens": 300}  # too large to run ahead of its turn

    async def flood():
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=100)) as client:

            async def one():
                start = time.perf_counter()
                response = await client.post(server.url + CHAT, json=waiting)
                return response, time.perf_counter() - start

            return await asyncio.gather(*(one() for _ in range(40)))

    results = asyncio.run(flood())
    refused = [(response, seconds) for response, seconds in results if response.status_code == 429]
    assert len(refused) == 38 and all(response.headers["retry-after"] == "1" for response, _ in refused)
    assert {response.status_code for response, _ in results} == {200, 429}
    assert [reader.finish_reason() for reader in readers] == ["length"] * 8
    times = sorted(seconds for _, seconds in refused)
    print(f"40 at once: 38 refused, median {1000 * times[19]:.0f} ms, slowest {1000 * times[-1]:.0f} ms")


def test_prompts_queued_before_a_refused_one_are_taken_back(own):
    queue = ["--max-running-requests", "1", "--max-queued-requests", "9", "--shutdown-timeout", "0"]
    server = own(*queue).wait_ready()
    reader = Reader(server, HELD)
    until(lambda: server.metric("num_requests_waiting") == 7)
    response = httpx.post(server.url + "/v1/completions", json={"prompt": ["a", "b", "c", "d"], "max_tokens": 9})
    assert response.status_code == 429
    until(lambda: server.metric("num_requests_waiting") <= 7, timeout=2)
    assert reader.is_alive() and server.metric("request_success_total") == 2  # answers that ended: the two, aborted


def test_a_slow_reader_is_cut_off_and_disturbs_nobody(own):
    server = own("--send-timeout", "1").wait_ready()
    # logprobs make chunks large enough to fill the socket's buffers.
    body = LONG | {"stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
    data = json.dumps(body).encode()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    start = time.perf_counter()
    slow.sendall(head.encode() + data)
    until(lambda: server.metric("num_requests_running") == 8)
    reader = Reader(server, LONG | {"max_tokens": 20})
    assert reader.finish_reason() == "length"
    until(lambda: server.metric("num_requests_running") == 0, timeout=60)
    print(f"slow reader cut off {time.perf_counter() - start:.1f} s after its request (send timeout 1 s)")
    until(lambda: any(line.get("slow_reader") for line in server.log()))  # written after the request has ended
    [line] = [line for line in server.log() if line.get("slow_reader")]
    assert line["path"] == CHAT
    assert server.terminate() == 0
    slow.close()


DIES = """
import threading, time, longcat
from longcat.server.run import bind, run
from longcat.server.settings import ServerSettings
engine = longcat.Engine({model!r})
{how}
raise SystemExit(run(engine, ServerSettings(("tiny",)), bind("127.0.0.1", 0)))
"""

DIES_AT_WORK = """
def die():
    while engine.metrics()["num_running"] < 8:
        time.sleep(0.01)
    engine._core.close()
threading.Thread(target=die, daemon=True).start()
"""


@pytest.mark.parametrize(
    ("how", "is_ever_ready"),
    [
        (DIES_AT_WORK, True),
        ("engine.failure = lambda: 'it broke'", False),
        ("engine.agenerate = None", False),
    ],
)
def test_a_dead_engine_is_never_healthy(own, tiny, how, is_ever_ready):
    server = own(program=DIES.format(model=tiny, how=how))
    seen = set()
    reader = None
    start = time.perf_counter()
    while server.process.poll() is None and time.perf_counter() - start < 20:
        try:
            seen.add(("ready", httpx.get(server.url + "/ready").status_code))
            if ("ready", 200) in seen and reader is None:
                reader = Reader(server, HELD)
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    assert server.process.wait(20) == 1
    assert (("ready", 200) in seen) == is_ever_ready
    assert any("the engine is dead" in line for line in server.lines)
    if reader is not None:
        reader.join(10)
        assert not reader.is_alive()  # it got its end, or its connection's
    print(f"exit code 1 {time.perf_counter() - start:.2f} s after the start: {how}")


def test_no_orphans_and_a_free_port_after_kill(own):
    server = own().wait_ready()
    port = server.url.rsplit(":", 1)[1]
    until(lambda: descendants(server.process.pid))
    started = descendants(server.process.pid)
    server.process.kill()
    server.process.wait(10)
    again = own("--port", port).wait_ready()
    assert again.url == server.url
    until(lambda: not any(map(is_running, started)))
