"""A live server under more connections than it has files for, and its end while they are open."""

import contextlib
import json
import socket
import ssl

import httpx
import pytest

from support.certificates import make_certificate, needs_openssl
from support.live import LiveServer

FEW_FILES = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"]
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BEGINNINGS = {
    "silent": b"",
    "half the headers": HEAD,
    "half a body": HEAD + b'Content-Length: 1000\r\n\r\n{"prompt": ',
    "half a chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\nff\r\n{"prompt": ',
    "half the trailers": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-a: ",
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_more_connections_than_files_and_a_quiet_end(tiny, kind):
    with LiveServer(tiny, launcher=FEW_FILES) as server, contextlib.ExitStack() as clients:
        port = int(server.url.rsplit(":", 1)[1])
        for number in range(500):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with contextlib.suppress(ConnectionError):  # it was displaced at once
                client.sendall(BEGINNINGS[kind])
            if number % 100 == 99:
                assert httpx.get(server.url + "/health", timeout=30).status_code == 200
                answer = httpx.post(
                    server.url + "/v1/completions", json={"prompt": "Once", "max_tokens": 1}, timeout=30
                )
                assert answer.status_code == 200
        assert server.terminate(timeout=20) == 0  # its shutdown timeout is 30 s
        said = [line for line in server.lines if not line.startswith(("{", "longcat: "))]
        assert said == []
        assert [line for line in server.lines if '"exception"' in line or '"level": "error"' in line] == []
        assert len(json.dumps(server.lines)) < 500 * len(server.lines)  # JSON in JSON


@needs_openssl
@pytest.mark.parametrize("beginning", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half a handshake"])
def test_more_connections_than_files_before_their_handshake(tiny, tmp_path, beginning):
    certificate, key = make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=certificate)
    arguments = ["--ssl-certfile", certificate, "--ssl-keyfile", key]
    server = LiveServer(tiny, *arguments, launcher=FEW_FILES).wait_ready(verify=context)
    try:
        with contextlib.ExitStack() as clients:
            port = int(server.url.rsplit(":", 1)[1])
            for number in range(400):
                client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                with contextlib.suppress(ConnectionError):  # it was displaced at once
                    client.sendall(beginning)
                if number % 100 == 99:
                    assert httpx.get(server.url + "/health", verify=context, timeout=30).status_code == 200
            assert server.terminate(timeout=20) == 0
    finally:
        server.__exit__()
    assert [line for line in server.lines if '"exception"' in line or '"level": "error"' in line] == []


def test_a_request_that_runs_is_finished_while_half_bodies_are_refused(tiny):
    with LiveServer(tiny) as server, contextlib.ExitStack() as clients:
        port = int(server.url.rsplit(":", 1)[1])
        half = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        half.sendall(BEGINNINGS["half a body"])
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "n": 8, "stream": True}
        with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            server.process.terminate()
            assert half.recv(100).startswith(b"HTTP/1.1 503 ")
            assert list(lines)[-2] == "data: [DONE]"
        assert server.process.wait(20) == 0
