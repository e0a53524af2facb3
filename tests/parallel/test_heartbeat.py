"""Ranks that watch each other, on threads: who is lost, who says it, and who is left alone."""

import socket
import struct
import threading
import time

import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.parallel import heartbeat
from longcat.parallel.addresses import own_addresses
from longcat.parallel.heartbeat import Heartbeat

from support.ranks import all_well, on_ranks


class Watch:
    """The heartbeats of a job, and what each reported: (rank, reason, said)."""

    def __init__(self, size: int, communicator=lambda ranks: ranks):
        self.reports = [[] for _ in range(size)]

        def start(ranks):
            return Heartbeat(communicator(ranks), lambda *report: self.reports[ranks.rank].append(report), [])

        self.ranks = all_well(on_ranks(size, start))

    def wait(self, *ranks: int) -> None:
        deadline = time.monotonic() + 10
        while not all(self.reports[rank] for rank in ranks):
            assert time.monotonic() < deadline, self.reports
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def kills(monkeypatch):
    """The threads that would kill the processes of lost ranks, which are all this one."""
    killed = []
    monkeypatch.setattr(heartbeat._Process, "kill", lambda process: killed.append(threading.current_thread()))
    return killed


@pytest.mark.parametrize("size", [2, 5])
def test_all_leave(size):
    watch = Watch(size)
    time.sleep(3 * heartbeat.BEAT_SECONDS)
    for rank in watch.ranks:
        rank.close()
    time.sleep(2 * heartbeat.BEAT_SECONDS)
    assert watch.reports == [[]] * size


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_is_told_to_all(failing):
    watch = Watch(4)
    watch.ranks[failing].fail("[weights] are\nmissing")
    others = [rank for rank in range(4) if rank != failing]
    watch.wait(*others)
    assert watch.reports[failing] == []
    for rank in others:
        [(_, reason, said)] = watch.reports[rank]
        assert said and reason.endswith("[weights] are missing")
        assert reason.startswith(f"rank {failing} failed: ") == (failing > 0)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_engine_that_fails_is_told_to_all(failing, monkeypatch):
    """Nobody calls `fail`: the heartbeat sees that communicators have been given up."""
    monkeypatch.setattr(heartbeat, "OWN_WORDS_SECONDS", 0.2)

    class Failing:
        """The failure of one rank alone: threads share theirs."""

        failure = ""

        def __init__(self, ranks):
            self.ranks = ranks

        def __getattr__(self, name):
            return getattr(self.ranks, name)

    watch = Watch(3, Failing)
    watch.ranks[failing]._communicator.failure = f"[parallel] rank {failing} failed: [engine] it is\nbroken"
    watch.wait(0, 1, 2)
    assert watch.reports[failing] == [(failing, f"[parallel] rank {failing} failed: [engine] it is\nbroken", True)]
    for rank in {0, 1, 2} - {failing}:
        [(_, reason, said)] = watch.reports[rank]
        assert said and reason.removeprefix("[parallel] ") == f"rank {failing} failed: [engine] it is broken"


def test_a_rank_that_dies():
    watch = Watch(3)
    for connection in list(watch.ranks[1]._peers):
        connection.shutdown(2)
    watch.wait(0, 2)
    assert watch.reports[0] == [(1, "rank 1 has ended without a word: it was killed, or it crashed", False)]
    assert watch.reports[2][0][1] == watch.reports[0][0][1]


def hear_nothing(peer):
    """In place of _Peer.receive: the connection stays readable, so this is called again and again."""
    time.sleep(0.01)
    peer.heard = float("inf")
    return []


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_that_stops(silent, monkeypatch, kills):
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 1.5)
    watch = Watch(3)
    for peer in list(watch.ranks[silent]._peers.values()):
        peer.send = lambda line: None
        peer.receive = lambda peer=peer: hear_nothing(peer)
    noticing = [1, 2] if silent == 0 else [0]
    watch.wait(*noticing)
    time.sleep(1.5)
    own = {rank: watch.ranks[rank]._thread for rank in range(3)}
    assert [rank for rank in range(3) if own[rank] in kills] == noticing
    for rank in noticing:
        lost, reason, said = watch.reports[rank][0]
        assert lost == silent and not said and f"rank {silent} has not answered for" in reason


UNKNOWN_PEERS = {
    "silent": lambda peer: None,
    "hangs up": lambda peer: peer.close(),
    "is reset": lambda peer: (
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
        peer.close(),
    ),
    "garbage": lambda peer: peer.sendall(b"\xff" * 200),
    "half a handshake": lambda peer: peer.sendall(b"x" * 20),
}


@pytest.mark.parametrize("kind", UNKNOWN_PEERS)
def test_unknown_peers_are_refused(kind, monkeypatch):
    """A peer without the token is no rank, and neither ends nor delays the job."""
    real, peers = socket.create_connection, []

    def connect(address, timeout=None):
        for _ in range(5):
            peers.append(real(address, timeout))
            UNKNOWN_PEERS[kind](peers[-1])
        return real(address, timeout)

    monkeypatch.setattr(heartbeat.socket, "create_connection", connect)
    began = time.monotonic()
    watch = Watch(3)
    assert time.monotonic() - began < 5
    assert sorted(peer.rank for peer in watch.ranks[0]._peers.values()) == [1, 2]
    for rank in watch.ranks:
        rank.close()
    for peer in peers:
        peer.close()


def test_who_does_not_come_is_missed(monkeypatch):
    monkeypatch.setattr(heartbeat, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(
        Heartbeat,
        "_connect",
        lambda self, communicator: communicator.broadcast(np.zeros(2 + heartbeat._ADDRESS_BYTES, np.uint8), 0),
    )
    communicators = testing.thread_communicators(2)

    def start(ranks):
        try:
            Heartbeat(ranks, lambda *report: None, [])
        except _core.Error as error:
            communicators[1].abort("over")
            return str(error)

    line = "[parallel] rank 0 waits for 1 of 1 ranks to connect, which have not done so within 0.3 s"
    assert on_ranks(2, start, communicators) == [line, "over"]


def start_at(hosts):
    """A job's heartbeats, or the errors that rank 0 and rank 1 end with."""
    communicators = testing.thread_communicators(2)

    def start(ranks):
        try:
            return Heartbeat(ranks, lambda *report: None, hosts)
        except _core.Error as error:
            communicators[0].abort("over")
            return str(error)

    return on_ranks(2, start, communicators)


def test_one_of_the_addresses_answers():
    for rank in start_at(["255.255.255.255", "127.0.0.2"]):
        assert isinstance(rank, Heartbeat)
        rank.close()


def test_no_address_answers(monkeypatch):
    monkeypatch.setattr(heartbeat, "CONNECT_SECONDS", 0.5)
    first, second = start_at(["255.255.255.255"])
    assert first.startswith("[parallel] rank 0 waits for 1 of 1 ranks")
    assert second.startswith("[parallel] rank 1 cannot reach rank 0 at port ") and "255.255.255.255: " in second


def test_own_addresses():
    found = own_addresses()
    assert found and not any(address.startswith("127.") for address in found)
