"""Ranks that watch each other: when one dies or stops, the others hear of it within seconds.

Rank 0 listens, the others connect. Each side sends a heartbeat every half second. A rank is lost after four seconds of
silence, or at once when its connection ends without a goodbye. A rank that fails sends the reason; its heartbeat also
sends the failure of an engine. The rank that notices a silent rank on its own machine kills it: a stopped process would
outlive its launcher.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat._core import Error

BEAT_SECONDS = 0.5
SILENCE_SECONDS = 4.0
CONNECT_SECONDS = 30.0
OWN_WORDS_SECONDS = 1.5  # for a rank whose engine has failed to say so itself
_GOODBYE_SECONDS = 3.0
_LAST_WORDS_SECONDS = 1.0
_BEAT, _FAILED, _BYE = b".", b"!", b"~"  # first byte of a line
_TOKEN_BYTES = 16
_HANDSHAKE_BYTES = 96  # token, rank, process
_BACKLOG = 128
_MAX_LINE = 4096
_ADDRESS_BYTES = 512
_MAX_HOSTS = 8
_HOST_SECONDS = 5.0  # for each of them to answer


class Heartbeat:
    """Watches ranks, on a thread of its own: rank 0 watches all others, and each of them watches rank 0.

    Args:
        communicator: of the whole job; every rank makes its Heartbeat at the same time.
        on_failure: called once, on that thread, with a rank, a line that names the failed rank, and whether the failure
            was reported. The rank is the one that reported it; without a report, the one that is lost.
        hosts: addresses of rank 0, which the other ranks try in turn; only rank 0 reads them. None: all ranks are on
            this machine.
    Raises:
        longcat.Error: the ranks cannot reach each other.
    """

    def __init__(self, communicator: Any, on_failure: Callable[[int, str, bool], None], hosts: Sequence[str]):
        self._communicator, self._rank, self._size = communicator, communicator.rank, communicator.size
        self._on_failure = on_failure
        self._peers: dict[socket.socket, _Peer] = {}
        self._lock = threading.Lock()  # of writing, and of `_ended`
        self._ended = False
        self._silent: _Process | None = None
        if self._rank == 0:
            self._listen(communicator, hosts)
        else:
            self._connect(communicator)
        communicator.barrier()
        self._thread = threading.Thread(target=self._watch, name="longcat-heartbeat", daemon=True)
        self._thread.start()

    def fail(self, reason: str) -> None:
        """Tells the others why this rank ends."""
        self._end(self._failed_line(reason))
        if self._rank > 0:  # the launcher ends all when the first process has ended: not before rank 0 has spoken
            self._thread.join(_GOODBYE_SECONDS)

    def close(self) -> None:
        """Says goodbye: this rank is done, and no rank waits for it."""
        self._end(_BYE + b"\n")

    def _failed_line(self, reason: str) -> bytes:
        if self._rank > 0:
            reason = reason.removeprefix(f"[parallel] rank {self._rank} failed: ")  # rank 0 puts it there
        return _FAILED + reason.replace("\n", " ").encode()[: _MAX_LINE - 2] + b"\n"

    def _end(self, line: bytes) -> bool:
        """Says the last line; False when that was said before."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            for peer in list(self._peers.values()):
                peer.send(line)
            return True

    def kill_silent(self) -> None:
        """Kills the rank that did not answer. The launcher then ends all others: not before they have spoken."""
        if self._silent is not None:
            self._silent.kill()

    # --- connecting --------------------------------------------------------------------------------------------

    def _listen(self, communicator: object, hosts: Sequence[str]) -> None:
        token = secrets.token_bytes(_TOKEN_BYTES)
        with socket.create_server(("" if hosts else "127.0.0.1", 0), backlog=_BACKLOG) as server:
            known = ",".join(hosts[:_MAX_HOSTS]) or "127.0.0.1"
            me = _Process.current().encode()
            _broadcast(communicator, token + f"{known}:{server.getsockname()[1]} ".encode() + me)
            self._let_in(server, token)

    def _let_in(self, server: socket.socket, token: bytes) -> None:
        """Accepts the connections of all other ranks. An unknown peer is refused, and delays no rank."""
        server.setblocking(False)
        deadline = time.monotonic() + CONNECT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(server, selectors.EVENT_READ)
            while (missing := self._size - 1 - len(self._peers)) > 0:
                if (left := deadline - time.monotonic()) <= 0:
                    raise Error(
                        f"[parallel] rank 0 waits for {missing} of {self._size - 1} ranks to connect, which have not "
                        f"done so within {CONNECT_SECONDS:g} s"
                    )
                for key, _ in selector.select(left):
                    with contextlib.suppress(OSError):  # of one who left at once
                        if key.fileobj is server:
                            connection, _ = server.accept()
                            connection.setblocking(False)
                            selector.register(connection, selectors.EVENT_READ, bytearray())
                        elif (handshake := self._read_handshake(key)) is not None:
                            selector.unregister(key.fileobj)
                            self._check_handshake(key.fileobj, handshake, token)  # type: ignore[arg-type]
            for key in list(selector.get_map().values()):
                if key.fileobj is not server:
                    key.fileobj.close()  # type: ignore[union-attr]

    @staticmethod
    def _read_handshake(key: selectors.SelectorKey) -> bytes | None:
        """The first bytes of a connection; b"" when it has ended, None while more are expected."""
        try:
            data = key.fileobj.recv(_HANDSHAKE_BYTES - len(key.data))  # type: ignore[union-attr]
        except BlockingIOError:
            return None
        except OSError:
            return b""
        key.data.extend(data)
        return bytes(key.data) if len(key.data) == _HANDSHAKE_BYTES else None if data else b""

    def _check_handshake(self, connection: socket.socket, handshake: bytes, token: bytes) -> None:
        if secrets.compare_digest(handshake[:_TOKEN_BYTES], token):
            rank, process = handshake[_TOKEN_BYTES:].decode().split(maxsplit=1)
            connection.send(token[::-1])  # who listens at such an address elsewhere does not know it
            self._add(connection, int(rank), _Process.decode(process))
        else:
            connection.close()

    def _connect(self, communicator: object) -> None:
        message = _broadcast(communicator, b"")
        token = message[:_TOKEN_BYTES]
        address, process = message[_TOKEN_BYTES:].decode().split(maxsplit=1)
        hosts, _, port = address.rpartition(":")
        handshake = (token + f"{self._rank} ".encode() + _Process.current().encode()).ljust(_HANDSHAKE_BYTES)
        failures = []
        for host in hosts.split(","):
            try:
                connection = socket.create_connection((host, int(port)), timeout=_HOST_SECONDS)
                connection.sendall(handshake)
                if connection.recv(_TOKEN_BYTES, socket.MSG_WAITALL) == token[::-1]:
                    return self._add(connection, 0, _Process.decode(process))
                failures.append(f"{host}: another program listens there")
            except OSError as error:
                failures.append(f"{host}: {error}")
        raise Error(
            f"[parallel] rank {self._rank} cannot reach rank 0 at port {port} of {'; '.join(failures)}; "
            "LONGCAT_HOST_IP on rank 0 names the address to use"
        )

    def _add(self, connection: socket.socket, rank: int, process: _Process) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._peers[connection] = _Peer(connection, rank, process)

    # --- watching ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self._peers:
                selector.register(connection, selectors.EVENT_READ)
            next_beat, failed_at = 0.0, float("inf")
            while self._peers:
                if failure := self._communicator.failure:
                    failed_at = min(failed_at, time.monotonic())
                    if time.monotonic() - failed_at > OWN_WORDS_SECONDS:
                        if self._end(self._failed_line(failure)):
                            self._on_failure(self._rank, failure, True)
                        failed_at = float("inf")
                if (now := time.monotonic()) >= next_beat:
                    next_beat = now + BEAT_SECONDS
                    for peer in self._peers.values():
                        peer.send(_BEAT + b"\n")
                for key, _ in selector.select(BEAT_SECONDS / 2):
                    peer = self._peers[key.fileobj]  # type: ignore[index]
                    for line in peer.receive():
                        if line.startswith(_FAILED):
                            return self._lost(peer, line[1:].decode(errors="replace"), said=True)
                        if line.startswith(_BYE):
                            peer.left = True
                    if peer.closed:
                        selector.unregister(peer.connection)
                        del self._peers[peer.connection]
                        if not peer.left:
                            return self._lost(peer, "has ended without a word: it was killed, or it crashed")
                for peer in self._peers.values():
                    silence = time.monotonic() - peer.heard
                    if silence > SILENCE_SECONDS and not peer.left:
                        self._silent = peer.process
                        self._lost(peer, f"has not answered for {silence:.0f} s: it was stopped, or cut off")
                        time.sleep(_LAST_WORDS_SECONDS)
                        return self.kill_silent()

    def _lost(self, peer: _Peer, reason: str, said: bool = False) -> None:
        with self._lock:
            if self._ended:  # it is we who are leaving
                return
            self._ended = True
        if not (said and peer.rank == 0):  # who passes on what others said
            reason = f"rank {peer.rank} {'failed: ' if said else ''}{reason}"
        self._on_failure(peer.rank, reason, said)
        for other in self._peers.values():  # rank 0 tells the rest
            other.send(_FAILED + reason.encode()[: _MAX_LINE - 2] + b"\n")


@dataclass(frozen=True)
class _Process:
    """Which process a rank is, and on which machine."""

    machine: str  # changes with each start of the machine
    pid: int

    @classmethod
    def current(cls) -> _Process:
        return cls(Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.getpid())

    def encode(self) -> bytes:
        return f"{self.machine} {self.pid}".encode()

    @classmethod
    def decode(cls, text: str) -> _Process:
        machine, pid = text.split()
        return cls(machine, int(pid))

    def kill(self) -> None:
        if self.machine == self.current().machine:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)


class _Peer:
    """One connection: lines in, lines out, neither of which waits."""

    def __init__(self, connection: socket.socket, rank: int, process: _Process):
        self.connection, self.rank, self.process = connection, rank, process
        self.heard = time.monotonic()
        self.closed = self.left = False
        self._rest = b""

    def send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # full or closed: reading tells
            self.connection.send(line)

    def receive(self) -> list[bytes]:
        try:
            data = self.connection.recv(_MAX_LINE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return []
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_MAX_LINE:]
        return lines


def _broadcast(communicator: Any, message: bytes) -> bytes:
    """Rank 0's message, at most 512 bytes, on every rank."""
    import numpy as np

    buffer = np.zeros(2 + _ADDRESS_BYTES, np.uint8)
    if communicator.rank == 0:
        buffer[:2] = np.frombuffer(len(message).to_bytes(2, "little"), np.uint8)
        buffer[2 : 2 + len(message)] = np.frombuffer(message, np.uint8)
    communicator.broadcast(buffer, 0)
    return buffer[2 : 2 + int.from_bytes(buffer[:2].tobytes(), "little")].tobytes()
