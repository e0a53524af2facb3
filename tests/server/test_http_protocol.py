"""Connections: offers of other protocols, trailers, deadlines, and how many there are. The application is a stub."""

import asyncio
import contextlib
import inspect
import json
import re
import socket
import ssl

import httptools
import pytest
import uvicorn
from longcat.server.http.http_protocol import Connections, LimitedHttpProtocol
from longcat.server.http.tls import TlsHandshake
from longcat.server.run import bind
from longcat.server.settings import ServerSettings
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from support.certificates import make_certificate, needs_openssl

POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /blind HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 20  # before a test that waits for nothing fails


async def app(scope, receive, send):
    """Answers the length of the body; at /blind without reading it, at /slow when `scope["state"]` says so."""
    body = b""
    message = {"more_body": scope["path"] != "/blind"}
    while message["more_body"]:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
    if scope["path"] == "/slow":
        await scope["state"]["release"].wait()
    names = ",".join(sorted(name.decode() for name, _ in scope["headers"]))
    answer = json.dumps({"length": len(body), "headers": names}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


@contextlib.asynccontextmanager
async def serving(tls=None, **limits):
    """(connect, table of connections, event that lets /slow answer). `tls`: the server's SSLContext."""
    settings = ServerSettings(("x",), **limits)
    table = Connections(settings.max_connections)
    protocol = type("Protocol", (LimitedHttpProtocol,), {"settings": settings, "table": table})
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, access_log=False)
    config.load()
    state, release = ServerState(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def connection():
        inner = protocol(config, state, {"release": release})
        return TlsHandshake(inner, tls) if tls else inner

    server = await loop.create_server(connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = []

    async def connect(*parts, **options):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        clients.append(writer)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.005)  # a packet of its own
        return reader, writer

    yield connect, table, release
    for writer in clients:
        writer.transport.abort()
    server.close()


def run(test):
    asyncio.run(asyncio.wait_for(test(), SECONDS))


async def until_closed(reader):
    with contextlib.suppress(ConnectionError):
        return await reader.read(-1)
    return b""


async def answers(reader, count):
    """Returns the status and body of `count` answers."""
    found = []
    for _ in range(count):
        head = await reader.readuntil(b"\r\n\r\n")
        found.append(
            (int(head[9:12]), await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1])))
        )
    return found


def whole(body):
    return b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(body, size=7, trailer=b""):
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n"


OFFERS = {
    "none": b"",
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "lower case": b"connection: keep-alive, upgrade\r\nupgrade: h2c\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a\r\n",
    "TLS": b"Upgrade: TLS/1.0, HTTP/1.1\r\nConnection: Upgrade\r\n",
    "twice": b"Connection: upgrade\r\nUpgrade: h2c\r\nConnection: http2-settings\r\nUpgrade: foo\r\n",
}
BODY = b'{"messages": [1, 2, 3]}'
SPLITS = {
    "one packet": lambda data: [data],
    "the body in a second": lambda data: [
        b + (b"\r\n\r\n" if i == 0 else b"") for i, b in enumerate(data.split(b"\r\n\r\n", 1))
    ],
    "byte by byte": lambda data: [data[at : at + 1] for at in range(len(data))],
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("framing", [whole, chunked])
@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_of_another_protocol_is_ignored(offer, framing, split):
    async def test():
        async with serving() as (connect, _, _):
            first = POST + OFFERS[offer] + framing(BODY)
            reader, writer = await connect(*SPLITS[split](first))
            [(status, body)] = await answers(reader, 1)
            assert status == 200 and json.loads(body)["length"] == len(BODY)
            assert "upgrade" not in json.loads(body)["headers"] or offer == "none"
            writer.write(POST + OFFERS[offer] + framing(b"x" * 99) + GET)  # the requests after it
            found = await answers(reader, 2)
            assert [status for status, _ in found] == [200, 200] and json.loads(found[0][1])["length"] == 99

    run(test)


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_an_offer_without_a_body_is_ignored(method):
    async def test():
        async with serving() as (connect, _, _):
            head = f"{method} /echo HTTP/1.1\r\nHost: a\r\n".encode() + OFFERS["h2c"] + b"\r\n"
            reader, _ = await connect(head + GET)
            assert [status for status, _ in await answers(reader, 2)] == [200, 200]

    run(test)


FLOODS = {
    "many trailers": chunked(b"a", trailer=b"x-a: b\r\n" * 20_000),
    "a long trailer": chunked(b"a", trailer=b"x-a: " + b"b" * 400_000 + b"\r\n"),
    "a long name of a trailer": chunked(b"a", trailer=b"b" * 400_000 + b": a\r\n"),
    "a long chunk extension": b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 400_000 + b"\r\nx\r\n0\r\n\r\n",
    "tiny chunks": chunked(b"a" * 100_000, size=1),
    "a body beyond the limit": chunked(b"a" * 400_000, size=4096),
}


@pytest.mark.parametrize("path", ["/echo", "/blind"])
@pytest.mark.parametrize("flood", FLOODS)
def test_what_is_no_body_is_counted_whether_it_is_read_or_not(flood, path):
    async def test():
        async with serving(max_body_bytes=200_000) as (connect, _, _):
            reader, writer = await connect(POST.replace(b"/echo", path.encode()) + FLOODS[flood])
            writer.write(b"a")  # the connection has to be closed, not only this request refused
            found = await until_closed(reader)
            assert path == "/blind" or b" 200 OK" not in found

    run(test)


def test_trailers_of_a_usual_size_are_read_over():
    async def test():
        async with serving() as (connect, _, _):
            reader, _ = await connect(POST + chunked(b"a" * 1000, 64, b"x-checksum: 1\r\n" * 20) + POST + whole(b"b"))
            (status, body), (_, other) = await answers(reader, 2)
            assert status == 200 and json.loads(body) == {"length": 1000, "headers": "host,transfer-encoding"}
            assert json.loads(other)["length"] == 1

    run(test)


SILENT = {
    "no byte": [b""],
    "empty lines": [b"\r\n\r\n"],
    "half a method": [b"PO"],
    "half the headers": [POST],
    "no body": [POST + b"Content-Length: 100\r\n\r\n"],
    "half a body": [POST + b"Content-Length: 100\r\n\r\n" + b"a" * 50],
    "half a chunk": [POST + b"Transfer-Encoding: chunked\r\n\r\n40\r\naaaa"],
    "half the trailers": [POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-a: b"],
    "half a body that nobody reads": [b"POST /blind HTTP/1.1\r\nContent-Length: 100\r\n\r\naaaa"],
    "an offer and half a body": [POST + OFFERS["h2c"] + b"Content-Length: 100\r\n\r\naaaa"],
    "a request, then half of one": [GET, POST],
    "a request, then empty lines": [GET, b"\r\n"],
    "a request, then nothing": [GET],
}


@pytest.mark.parametrize("kind", SILENT)
def test_each_silent_connection_is_closed_by_a_deadline(kind):
    async def test():
        async with serving(header_timeout=0.1, body_timeout=0.1) as (connect, table, _):
            reader, _ = await connect(*SILENT[kind])
            await until_closed(reader)
            while table._num_open:
                await asyncio.sleep(0.01)

    run(test)


def test_a_slow_body_with_progress_arrives():
    async def test():
        async with serving(body_timeout=0.05, body_rate=100) as (connect, _, _):
            reader, writer = await connect(POST + b"Content-Length: 300\r\n\r\n")
            for _ in range(30):  # 0.3 s; 300 bytes may take 3 s more
                writer.write(b"a" * 10)
                await asyncio.sleep(0.01)
            [(status, body)] = await answers(reader, 1)
            assert status == 200 and json.loads(body)["length"] == 300

    run(test)


def test_a_new_connection_displaces_the_one_that_waits_longest():
    async def test():
        async with serving(max_connections=3) as (connect, table, release):
            slow, _ = await connect(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            silent = [(await connect(part))[0] for part in (POST, POST + b"Content-Length: 9\r\n\r\na")]
            for _ in range(20):
                reader, writer = await connect(GET)
                assert (await answers(reader, 1))[0][0] == 200
            for reader in silent:
                await until_closed(reader)
            release.set()  # the one at work was left alone
            assert (await answers(slow, 1))[0][0] == 200
            assert table._num_open <= 4

    run(test)


def test_when_all_are_at_work_a_new_connection_is_told():
    async def test():
        async with serving(max_connections=2) as (connect, _, release):
            slow = [(await connect(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"))[0] for _ in range(2)]
            reader, _ = await connect()
            assert b"503" in await until_closed(reader)
            release.set()
            assert [(await answers(reader, 1))[0][0] for reader in slow] == [200, 200]

    run(test)


def test_draining_refuses_half_bodies_and_keeps_the_rest():
    async def test():
        async with serving() as (connect, table, _):
            half, _ = await connect(POST + b"Content-Length: 100\r\n\r\naaaa")
            idle, writer = await connect(GET)
            await answers(idle, 1)
            table.drain()
            assert b" 503 " in await until_closed(half)
            writer.write(GET)
            assert (await answers(idle, 1))[0][0] == 200

    run(test)


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"\x16\x03\x01\x02\x00\x01", b"400"), (b"GET\r\n\r\n", b"400"), (b"CONNECT a:1 HTTP/1.1\r\n\r\n", b"405"),
     (b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
     (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400")],
)  # fmt: skip
def test_refusals_of_the_connection_are_errors_as_all_others(data, status):
    async def test():
        async with serving() as (connect, _, _):
            reader, _ = await connect(data)
            head, _, body = (await until_closed(reader)).partition(b"\r\n\r\n")
            assert head.split()[1] == status
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}

    run(test)


def test_a_burst_of_requests_on_one_connection_is_answered_in_order():
    async def test():
        async with serving() as (connect, _, _):
            requests = [POST + whole(b"a" * size) for size in range(500)]
            reader, _ = await connect(b"".join(requests))
            found = await answers(reader, 500)
            assert [json.loads(body)["length"] for _, body in found] == list(range(500))

    run(test)


def test_uvicorn_is_as_the_protocol_expects():
    """What http_protocol.py relies on beyond uvicorn's documentation; pyproject.toml pins the version."""
    for name in ("connection_made", "connection_lost", "shutdown", "on_message_begin", "on_url", "on_header",
                 "on_headers_complete", "on_body", "on_message_complete", "on_response_complete", "pause_writing",
                 "resume_writing", "timeout_keep_alive_handler", "send_400_response", "data_received",
                 "_unset_keepalive_if_required"):  # fmt: skip
        assert name in vars(HttpToolsProtocol), name
    written = inspect.getsource(HttpToolsProtocol) + inspect.getsource(RequestResponseCycle)
    for name in ("parser", "pipeline", "flow", "cycle", "scope", "url", "headers", "transport"):
        assert f"self.{name}" in written, name
    for name in ("disconnected", "message_event", "response_started", "response_complete"):
        assert f"self.{name}" in inspect.getsource(RequestResponseCycle), name
    assert STATUS_LINE[413].startswith(b"HTTP/1.1 413 ") and STATUS_LINE[413].endswith(b"\r\n")
    assert issubclass(httptools.HttpParserUpgrade, Exception)


@needs_openssl
def test_a_handshake_has_a_deadline_and_a_place_among_the_connections(tmp_path):
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=certificate)

    async def test():
        async with serving(tls=context, header_timeout=1.0, max_connections=2) as (connect, table, _):
            oldest, _ = await connect()
            late, _ = await connect(b"\x16\x03\x01")
            await connect()
            assert await until_closed(oldest) == b""  # displaced by the third
            assert await until_closed(late) == b""
            none, _ = await connect(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP" not in await until_closed(none)
            reader, writer = await connect(POST + whole(BODY), ssl=trusting)
            [(status, body)] = await answers(reader, 1)
            assert status == 200 and json.loads(body)["length"] == len(BODY)
            writer.close()
            await writer.wait_closed()
            while table._num_open:
                await asyncio.sleep(0.01)

    run(test)


def test_responses_do_not_wait_for_acknowledgements():
    """Of a response's first packet, before the second is sent."""

    async def test():
        accepted = asyncio.get_running_loop().create_future()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport):
                own = transport.get_extra_info("socket")
                accepted.set_result(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        sock = bind("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(Accepted, sock=sock)
        _, writer = await asyncio.open_connection(*sock.getsockname())
        assert await accepted
        writer.close()
        server.close()

    run(test)
