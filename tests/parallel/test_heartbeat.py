"""Ranks that watch each other, on threads: who is lost, who says it, and who is left alone."""

import threading
import time

import pytest
from longcat import heartbeat
from longcat.heartbeat import Heartbeat

from parallel.ranks import all_well, on_ranks


class Watch:
    """The heartbeats of a job, and what each reported: (rank, reason, said)."""

    def __init__(self, size: int):
        self.reports = [[] for _ in range(size)]

        def start(ranks):
            return Heartbeat(ranks, lambda *report: self.reports[ranks.rank].append(report), None)

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


def test_strangers_are_turned_away(monkeypatch):
    """A connection that does not know the token takes nobody's place."""
    import socket

    real = socket.create_connection

    def connect(address, timeout=None):
        stranger = real(address, timeout)
        stranger.sendall(b"x" * 200)
        threading.Timer(1.0, stranger.close).start()
        return real(address, timeout)

    monkeypatch.setattr(heartbeat.socket, "create_connection", connect)
    watch = Watch(2)
    assert [peer.rank for peer in watch.ranks[0]._peers.values()] == [1]
    for rank in watch.ranks:
        rank.close()
