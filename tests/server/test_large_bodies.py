"""Bodies above 16 KiB: a worker reads them, they are answered as small ones, and their bytes have a bound."""

import asyncio
import contextlib
import json
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import longcat
import pytest
from longcat.server.api.protocol import ChatRequest, CompletionRequest
from longcat.server.generation import Service
from longcat.server.http import intake as http_intake
from longcat.server.http.errors import ApiError
from longcat.server.http.intake import Intake, Room
from longcat.server.settings import ServerSettings
from longcat.support.worker import Pool

from support.live import descendants, is_running, until

POOL = Pool("longcat.server.api.large_bodies", {}, 1)  # which no test here starts
MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}]
GREEDY = {"temperature": 0, "max_tokens": 4}
GOOD = b'{"prompt": "Once", "max_tokens": 1}'
MESSAGES_API, RESPONSES_API = "/v1/messages", "/v1/responses"
THEIR_TOOLS = [{"name": "f", "input_schema": {"properties": {"a": {"type": "integer"}}}}]
ITEMS = [{"type": "message", "role": "user", "content": "Hi"}, {"type": "function_call", "call_id": "c", "name": "f",
         "arguments": "{}"}, {"type": "function_call_output", "call_id": "c", "output": "1"}]  # fmt: skip
ANSWER = {"temperature": 0, "max_output_tokens": 4}
CHANGING = "id|item_id|call_id|created|created_at|completed_at|cached_tokens|cache_read_input_tokens|input_tokens"
SAME = {
    "a chat": (CHAT, {"messages": MESSAGES} | GREEDY),
    "a stream": (COMPLETIONS, {"prompt": "Once", "stream": True, "stream_options": {"include_usage": True}} | GREEDY),
    "one prompt": (COMPLETIONS, {"prompt": "Once", "stop": ["x"], "logit_bias": {"5": -1}, "seed": -1} | GREEDY),
    "prompts": (COMPLETIONS, {"prompt": ["Once", "upon a", ""], "n": 2, "logprobs": 1} | GREEDY),
    "ids": (COMPLETIONS, {"prompt": [5, 6, 7]} | GREEDY),
    "lists of ids": (COMPLETIONS, {"prompt": [[5, 6, 7], [8]]} | GREEDY),
    "echo": (COMPLETIONS, {"prompt": "Once é<longcat_s>", "echo": True, "logprobs": 0} | GREEDY),
    "a typed tag": (CHAT, {"messages": [{"role": "user", "content": "<longcat_user>a"}]} | GREEDY),
    "a form": (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}} | GREEDY),
    "a schema": (COMPLETIONS, {"prompt": "x", "guided_json": {"enum": ["a", 1]}} | GREEDY),
    "a forced call": (CHAT, {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"} | GREEDY),
    "tools and a form": (
        CHAT,
        {"messages": MESSAGES, "tools": TOOLS, "structured_outputs": {"choice": ["a"]}} | GREEDY,
    ),
    "template variables": (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": True}} | GREEDY),
    "an unknown field": (CHAT, {"messages": MESSAGES, "temprature": 1} | GREEDY),
    "tokenize": ("/tokenize", {"prompt": "Once upon", "return_token_strs": True}),
    "tokenize messages": ("/tokenize", {"messages": MESSAGES, "tools": TOOLS}),
    "detokenize": ("/detokenize", {"tokens": [5, 6, 7]}),
    "another model": (CHAT, {"messages": MESSAGES, "model": "other", "temperature": 0}),
    "a wrong field": (CHAT, {"messages": MESSAGES, "temperature": "hot", "n": 0}),
    "a wrong message": (CHAT, {"messages": [{"role": "owner", "content": "a"}]}),
    "a wrong part": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    "a wrong tool": (CHAT, {"messages": MESSAGES, "tools": [{"type": "function", "function": {}}]}),
    "a wrong choice": (CHAT, {"messages": MESSAGES, "tool_choice": "required"}),
    "an undeclared tool": (CHAT, {"messages": MESSAGES, "tools": TOOLS, "tool_choice": {"function": {"name": "g"}}}),
    "a taken variable": (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"tools": 1}}),
    "a template": (CHAT, {"messages": MESSAGES, "chat_template": "x"}),
    "a wrong form": (CHAT, {"messages": MESSAGES, "response_format": {"type": "xml"}}),
    "two forms": (CHAT, {"messages": MESSAGES, "guided_regex": "a", "guided_choice": ["a"]}),
    "a wrong schema": (COMPLETIONS, {"prompt": "x", "guided_json": {"not": {"type": "null"}}}),
    "a wrong regex": (COMPLETIONS, {"prompt": "x", "guided_regex": "("}),
    "many stops": (COMPLETIONS, {"prompt": "x", "stop": ["a"] * 17}),
    "many logprobs": (COMPLETIONS, {"prompt": "x", "logprobs": 21}),
    "no prompts": (COMPLETIONS, {"prompt": []}),
    "an empty prompt": (COMPLETIONS, {"prompt": ""}),
    "many completions": (COMPLETIONS, {"prompt": ["x"] * 17, "n": 128}),
    "a suffix": (COMPLETIONS, {"prompt": "x", "suffix": "y"}),
    "ids beyond the vocabulary": (COMPLETIONS, {"prompt": [10**9]}),
    "a prompt that is too long": (COMPLETIONS, {"prompt": [5] * 9000}),
    "a field that is refused": (CHAT, {"messages": MESSAGES, "functions": [{}]}),
    "neither prompt nor messages": ("/tokenize", {}),
    "a message": (MESSAGES_API, {"messages": MESSAGES, "system": "Be brief."} | GREEDY),
    "a stream of a message": (MESSAGES_API, {"messages": MESSAGES, "stream": True} | GREEDY),
    "a message's schema": (
        MESSAGES_API,
        {"messages": MESSAGES, "output_config": {"format": {"type": "json_schema", "schema": {"enum": [7]}}}} | GREEDY,
    ),
    "a message's call": (
        MESSAGES_API,
        {"messages": MESSAGES, "tools": THEIR_TOOLS, "tool_choice": {"type": "any"}} | GREEDY,
    ),
    "a message that goes on": (MESSAGES_API, {"messages": [*MESSAGES, {"role": "assistant", "content": "A"}]} | GREEDY),
    "a wrong block": (MESSAGES_API, {"messages": [{"role": "user", "content": [{"type": "image"}]}]} | GREEDY),
    "another API's count": ("/v1/messages/count_tokens", {"messages": MESSAGES, "tools": THEIR_TOOLS}),
    "a response": (RESPONSES_API, {"input": "Hi", "instructions": "Be brief."} | ANSWER),
    "a response's items": (RESPONSES_API, {"input": ITEMS, "store": False} | ANSWER),
    "a stream of a response": (RESPONSES_API, {"input": "Hi", "stream": True} | ANSWER),
    "a response's form": (RESPONSES_API, {"input": "Hi", "text": {"format": {"type": "json_object"}}} | ANSWER),
    "a response's call": (
        RESPONSES_API,
        {"input": "Hi", "tools": [{"type": "function", "name": "f"}], "tool_choice": "required"} | ANSWER,
    ),
    "a response to none": (RESPONSES_API, {"input": "Hi", "previous_response_id": "resp_x"} | ANSWER),
    "a reference to none": (RESPONSES_API, {"input": [{"type": "item_reference", "id": "x"}]} | ANSWER),
    "an empty input": (RESPONSES_API, {"input": []} | ANSWER),
    "no object": (CHAT, [1]),
    "no JSON": (CHAT, b'{"messages": [}'),
}


@pytest.mark.parametrize("name", SAME)
def test_a_large_body_is_answered_as_a_small_one(server, name):
    path, body = SAME[name]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    small, middle, large = (
        httpx.post(server.url + path, content=data + b" " * num, timeout=60) for num in (0, 20_000, 100_000)
    )
    assert small.status_code == middle.status_code == large.status_code
    assert same_part(small.text) == same_part(middle.text) == same_part(large.text)
    for response in (middle, large):
        assert response.headers.get("x-ignored-fields") == small.headers.get("x-ignored-fields")


@pytest.mark.parametrize("length", [10, 20_000])
def test_a_large_body_goes_on_from_an_earlier_response(server, length):
    """The store is the server's, so the worker leaves such a conversation to it."""

    def respond(**body):
        response = httpx.post(server.url + RESPONSES_API, json=body | ANSWER, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()

    first = respond(input="Hi")
    padding = {"metadata": {"a": "b" * length}}
    second = respond(input="And now?", previous_response_id=first["id"], **padding)
    whole = [{"type": "message", "role": "user", "content": "Hi"}, *first["output"]]
    again = respond(input=[*whole, {"type": "message", "role": "user", "content": "And now?"}], **padding)
    assert second["usage"]["input_tokens"] == again["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert second["output"][0]["content"] == again["output"][0]["content"]
    kept = httpx.get(f"{server.url}{RESPONSES_API}/{second['id']}/input_items").json()
    assert [item["content"] for item in kept["data"]] == [[{"type": "input_text", "text": "And now?"}]]


@pytest.mark.parametrize("length", [0, 17_000, 70_000])
@pytest.mark.parametrize(
    ("path", "body", "place"),
    [(CHAT, {}, "messages"), (MESSAGES_API, {"max_tokens": 1}, "messages"), ("/tokenize", {}, "messages"),
     (RESPONSES_API, {"input": "x", "messages": 0}, "metadata"), (RESPONSES_API, {"messages": 0}, "input")],
)  # fmt: skip
def test_what_nests_too_deep_is_refused(server, path, body, place, length):
    deep = '{"a":' * 600 + "1" + "}" * 600
    value = deep if place == "metadata" else f'[{{"role": "user", "content": "x", "x": {deep}}}]'
    known = json.dumps(body)[1:-1]
    data = "{" + known + ("," if known else "") + f'"{place}": {value}' + "}" + " " * length
    response = httpx.post(server.url + path, content=data, timeout=60)
    assert response.status_code == 400 and "deep" in response.json()["error"]["message"], response.text


@pytest.mark.parametrize("path", [CHAT, RESPONSES_API])
def test_what_goes_to_the_event_loop_as_it_is_has_a_bound(server, path):
    body = {"messages": MESSAGES, "input": "Hi", "tools": [{"type": "function", "x": "y" * (1 << 20), "name": "f",
            "function": {"name": "f"}}]}  # fmt: skip
    response = httpx.post(server.url + path, json=body, timeout=60)
    message = response.json()["error"]["message"]
    assert response.status_code == 400 and "expected at most 1048576. Make them smaller." in message


def test_a_large_body_keeps_its_template_variables_where_the_server_renders(server):
    first = httpx.post(server.url + RESPONSES_API, json={"input": "Hi"} | ANSWER, timeout=60).json()["id"]
    body = {"input": "x", "previous_response_id": first, "chat_template_kwargs": {"tools": 1}}
    for length in (0, 20_000):
        response = httpx.post(server.url + RESPONSES_API, content=json.dumps(body) + " " * length, timeout=60)
        assert response.status_code == 400 and "chat_template_kwargs.tools" in response.text


LIMITED = {  # limits, status, words of the message
    "time": ({"_SECONDS": 0.02, "_SECONDS_PER_BYTE": 0}, 413, "the body takes more than 0 s to read; expected less"),
    "memory": ({"_MEMORY": 1 << 20, "_MEMORY_PER_BYTE": 0}, 413, "more than 1 MiB of memory to read; expected less"),
}


@pytest.mark.parametrize("kind", LIMITED)
def test_a_body_that_takes_too_much_is_refused_in_one_line(tiny, kind, monkeypatch):
    limits, status, words = LIMITED[kind]
    with longcat.Engine(tiny) as engine:
        settings = ServerSettings(("x",))
        intake = Service(engine, settings, None, None).intake
        data = json.dumps({"prompt": ["Once upon a time " * 100] * 1000}).encode()

        def taken_in():
            body, _ = asyncio.run(intake._taken_in(CompletionRequest, intake._large(CompletionRequest, data)))
            return len(body._done.token_ids)

        assert taken_in() == 1000
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(http_intake, name, value)
            with pytest.raises(ApiError, match=words) as caught:
                taken_in()
        assert caught.value.status_code == status and "\n" not in caught.value.detail
        assert taken_in() == 1000
        intake.pool.close()


def test_a_large_body_of_token_ids_needs_no_tokenizer(random_checkpoint):
    prompts = [list(range(100))] * 100
    with longcat.Engine(random_checkpoint) as engine:
        intake = Service(engine, ServerSettings(("x",)), None, None).intake
        for prompt, found in ((prompts, None), ("a" * 20_000, "tokenizer.json is missing")):
            job = intake._large(CompletionRequest, json.dumps({"prompt": prompt}).encode())
            if found is None:
                body, _ = asyncio.run(intake._taken_in(CompletionRequest, job))
                assert [list(ids) for ids in body._done.token_ids] == prompts
            else:
                with pytest.raises(ApiError, match=found):
                    asyncio.run(intake._taken_in(CompletionRequest, job))
        intake.pool.close()


def test_workers_that_do_not_start_are_told(tiny):
    with longcat.Engine(tiny) as engine:
        intake = Service(engine, ServerSettings(("x",)), None, None).intake
        intake.pool = Pool("longcat.server.no_such_module", {}, 1)
        with pytest.raises(ApiError, match="does not start: ModuleNotFoundError") as caught:
            asyncio.run(intake._taken_in(ChatRequest, intake._large(ChatRequest, b"{}")))
        assert caught.value.status_code == 503


def test_a_body_of_an_agent_does_not_wait_behind_huge_ones(server):
    huge, usual = b"[" * (24 << 20), GOOD + b" " * 30_000

    async def answers():
        ended = []

        async def send(name, body):
            await client.post(server.url + COMPLETIONS, content=body)
            ended.append(name)

        async with httpx.AsyncClient(timeout=60) as client:
            sent = [asyncio.ensure_future(send("huge", huge)) for _ in range(4)]
            await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
            await send("usual", usual)
            await asyncio.gather(*sent)
        return ended

    assert asyncio.run(answers())[:3].count("huge") <= 2


def test_the_work_for_a_client_that_left_ends(server):
    """A worker that reads a body is killed; where its client stays, it answers."""
    body = json.dumps({"prompt": ["Once upon a time there was " * 150] * 1000, "max_tokens": 1}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(head.encode() + body)
        found: list[int] = []
        until(lambda: found.extend(computing(server.process.pid)) or found)
        worker = found[0]
    until(lambda: not is_running(worker))
    assert httpx.post(server.url + COMPLETIONS, content=GOOD + b" " * 20_000, timeout=60).status_code == 200


def computing(server: int) -> list[int]:
    """Workers that have used processor time: a new one has next to none."""
    found = []
    for process in descendants(server):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            if fields[0] == "R" and int(fields[1]) != server and int(fields[11]) > 20:
                found.append(process)
    return found


def same_part(text: str) -> str:
    """Without ids, times, and what the prefix cache had."""
    text = re.sub(r'"timings":{[^}]*}', "", text)
    return re.sub(rf'"({CHANGING})":("[^"]*"|\d+)', "", text)


# --- bytes and rate -------------------------------------------------------------------------------------------------


def test_large_bodies_share_a_bound_and_small_ones_always_find_room():
    intake = Intake(ServerSettings(("x",), max_waiting_bytes=1_000_000), POOL)
    with Room(intake) as first, Room(intake) as second, Room(intake) as small:
        first.take(900_000)
        second.take(90_000)
        with pytest.raises(ApiError) as caught:
            second.take(20_000)
        assert caught.value.status_code == 503 and caught.value.headers["Retry-After"] == "1"
        small.take(60_000)
        first.leave()
        second.take(20_000)
    assert intake.num_bytes == 0


def test_large_bodies_share_a_rate_and_their_pieces_come_one_by_one():
    intake = Intake(ServerSettings(("x",)), POOL)
    ends = []

    async def piece():
        await intake._pace(1 << 20)
        ends.append(time.perf_counter())

    async def pieces():
        await asyncio.gather(*(piece() for _ in range(4)))

    start = time.perf_counter()
    asyncio.run(pieces())
    assert all(end - start >= (i + 1) / 64 for i, end in enumerate(ends))
