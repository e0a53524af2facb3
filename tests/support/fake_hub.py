"""A Hub and a ModelScope on this machine, with the faults that a network has."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """The state of the server, which tests set and read.

    Args:
        files: the model's files by name.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.url = ""
        self.status = 200  # of all answers
        self.error_code = ""  # the header X-Error-Code, by which the Hub says what is wrong
        self.cut_after: int | None = None  # bytes of a file's answer, which then ends, once for each file
        self.wrong: set[str] = set()  # files whose next answer has one other byte
        self.stalls = threading.Event()  # set: answers of files wait until `go`
        self.go = threading.Event()
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization
        self._cut: set[str] = set()

    def downloads(self) -> list[tuple[str, str | None]]:
        """The files that were asked for, each with its Range."""
        return [(path.rpartition("/")[2], ranged) for path, ranged, _ in self.asked if "/resolve/" in path]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answers one GET."""
        url = urlsplit(request.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.asked.append((path, request.headers.get("Range"), request.headers.get("Authorization")))
        if self.status != 200:
            return self._send(request, b'{"error": "no"}', self.status)
        if path.startswith("/api/models/"):
            siblings = [_sibling(name, data) for name, data in self.files.items()]
            return self._send(request, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode())
        if path.endswith("/repo/files"):
            listed = [
                {"Path": name, "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest(), "Type": "blob"}
                for name, data in self.files.items()
            ]
            listed.append({"Path": "folder", "Size": 0, "Type": "tree"})
            return self._send(request, json.dumps({"Code": 200, "Data": {"Files": listed}}).encode())
        name = query["FilePath"][0] if "FilePath" in query else path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in self.files:
            return self._send(request, b"", 404)
        self._send_file(request, name)

    def _send_file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        data = self.files[name]
        begin = int(re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "bytes=0-")[1])
        part = data[begin:]
        if name in self.wrong:
            self.wrong.discard(name)
            part = bytes([part[0] ^ 1]) + part[1:]
        sent = part
        if self.cut_after is not None and name not in self._cut:
            self._cut.add(name)
            sent = part[: self.cut_after]
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        if self.stalls.is_set():
            request.wfile.write(sent[:1000])
            request.wfile.flush()
            self.go.wait(30)
            sent = sent[1000:]
        request.wfile.write(sent)
        request.close_connection = True

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
        request.send_response(status)
        if self.error_code:
            request.send_header("X-Error-Code", self.error_code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def _sibling(name: str, data: bytes) -> dict[str, object]:
    """A file in the Hub's list: large ones have a SHA-256, the others the hash of their git blob."""
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    found: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
    if name.endswith(".safetensors"):
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


@contextmanager
def fake_hub(folder: str | Path) -> Iterator[FakeHub]:
    """Serves the files of a folder as the model of any name."""
    hub = FakeHub({path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                hub.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.go.set()
        server.shutdown()
        server.server_close()
