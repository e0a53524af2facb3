"""Requests of the engine end with the HTTP request that asked for them, however that ends."""

import asyncio
import contextlib
import functools
import json

import pytest
from longcat.request.outputs import StreamChunk
from longcat.server.api.chat import start_chat
from longcat.server.api.completions import start_completion
from longcat.server.api.messages.body import MessagesRequest
from longcat.server.api.messages.routes import start_message
from longcat.server.api.protocol import ChatRequest, CompletionRequest
from longcat.server.api.responses.body import ResponsesRequest
from longcat.server.api.responses.routes import start_response
from longcat.server.api.responses.store import ResponseStore
from longcat.server.app import Application
from longcat.server.http.streaming import EventStream
from longcat.server.settings import ServerSettings

from support.stub_engine import StubEngine, whole_output


class Waiting(StubEngine):
    """An engine that begins no request but the server's first, and knows which are there."""

    def __init__(self):
        self.open = set()
        self.fails = asyncio.Event()

    async def agenerate(self, *, prompt_token_ids, sampling_params, request_id=None, group=None):
        if request_id is None:
            yield StreamChunk("a", [1], finish_reason="length", output=whole_output(request_id, [1]))
            return
        self.open.add(request_id)
        try:
            await self.fails.wait()
            raise ValueError("a bug")
        finally:
            self.open.discard(request_id)
        yield


START = {
    "chat": (start_chat, ChatRequest(messages=[{"role": "user", "content": "x"}], stream=True)),
    "completions": (start_completion, CompletionRequest(prompt=["x", "y", "z"], stream=True)),
    "messages": (
        start_message,
        MessagesRequest(messages=[{"role": "user", "content": "x"}], max_tokens=9, stream=True),
    ),
    "responses": (
        functools.partial(start_response, store=ResponseStore(1 << 20), caller=b""),
        ResponsesRequest(input="x", stream=True),
    ),
}


@contextlib.asynccontextmanager
async def ready():
    app = Application(Waiting(), ServerSettings(("stub",), access_log=False))
    watch = asyncio.ensure_future(app.lifecycle.run())
    while app.lifecycle.state != "ready":
        await asyncio.sleep(0)
    app.api.state.service.app = app
    yield app.api.state.service
    watch.cancel()


def num_aborted(service):
    registry = service.metrics._registry
    return registry.get_sample_value(
        "longcat:request_success_total", {"model_name": "stub", "finished_reason": "abort"}
    )


@pytest.mark.parametrize("kind", START)
def test_an_answer_that_nobody_read_is_closed(kind):
    async def run():
        async with ready() as service:
            start, body = START[kind]
            answer = await start(service, body)
            num = len(service.engine.open)
            assert num == (3 if kind == "completions" else 1) == len(service.lifecycle._names)
            await answer.aclose()
            assert not service.engine.open and not service.lifecycle._names
            assert num_aborted(service) == num
            await answer.aclose()
            assert num_aborted(service) == num

    asyncio.run(run())


@pytest.mark.parametrize("steps", range(4))
@pytest.mark.parametrize("kind", START)
def test_a_start_that_is_cancelled_leaves_nothing(kind, steps):
    """After each of the first steps, among them those between asking the engine and hearing from it."""

    async def run():
        async with ready() as service:
            start, body = START[kind]
            service.planned = functools.partial(at_once, service)
            task = asyncio.ensure_future(start(service, body))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            [answer] = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(answer, BaseException):
                await answer.aclose()
            assert not service.engine.open and not service.lifecycle._names

    async def at_once(service, body, plan):
        return plan(service.texts, body)

    asyncio.run(run())


async def fail_in_the_midst(service, num_requests):
    """Lets the engine fail once all requests are with it and their answer has begun to wait for them."""
    while len(service.engine.open) < num_requests:
        await asyncio.sleep(0.001)
    for _ in range(50):
        await asyncio.sleep(0)
    service.engine.fails.set()


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("kind", START)
def test_a_stream_that_is_cancelled_as_it_begins_leaves_nothing(kind, times):
    async def run():
        async with ready() as service:
            start, body = START[kind]
            stream = EventStream(await start(service, body), 30.0)
            assert service.engine.open
            sending = asyncio.Event()

            async def send(message):
                sending.set()
                await asyncio.Event().wait()

            async def receive():
                await asyncio.Event().wait()

            task = asyncio.ensure_future(stream({"type": "http", "state": {"log": {}}}, receive, send))
            await sending.wait()
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            await asyncio.gather(task, return_exceptions=True)
            while service.engine.open or service.lifecycle._names:
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_bug_ends_all_requests_and_is_no_mistake_of_the_client(path):
    async def run():
        async with ready() as service:
            body = {"prompt": ["x", "y"]} if path == "/v1/completions" else {"messages": [{"role": "user"}]}
            app = service.app
            statuses = []

            async def send(message):
                statuses.append(message.get("status"))

            messages = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
            scope = {
                "type": "http", "http_version": "1.1", "method": "POST", "path": path, "query_string": b"",
                "raw_path": path.encode(), "root_path": "", "scheme": "http", "server": ("x", 1), "client": ("x", 1),
                "headers": [(b"content-type", b"application/json")],
            }  # fmt: skip
            failing = asyncio.ensure_future(fail_in_the_midst(service, len(body.get("prompt", "x"))))
            with pytest.raises(ValueError):  # for the server's log
                await app.asgi(scope, messages.get, send)
            await failing
            assert statuses[0] == 500 and not service.engine.open and not service.lifecycle._names

    asyncio.run(run())
