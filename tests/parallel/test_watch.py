"""Ranks that watch each other, on threads: which rank is lost, which reports it, and which is left alone."""

import contextlib
import os
import re
import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import longcat
import numpy as np
import pytest
from longcat import _core
from longcat import _testing as testing
from longcat.parallel.addresses import own_addresses
from longcat.parallel.job import Job

from support.live import until
from support.ranks import all_well, on_ranks, on_tcp_ranks

CARD_BYTES = 1024  # of a rank, which all ranks gather
KILLED = "has ended without a word: it was killed, or it crashed"


class Watches:
    """The watches of a job, and what each reported: (rank, reason, said).

    Args:
        deaf: ranks that do not listen, and so send no heartbeat.
        options: of _core.Watch.
    """

    def __init__(self, size: int, *deaf: int, on=on_ranks, **options):
        self.reports = [[] for _ in range(size)]
        self.processes = [0] * size
        self.communicators = [None] * size

        def start(ranks):
            self.communicators[ranks.rank] = ranks
            return _core.Watch(ranks, [], **options)

        self.ranks = all_well(on(size, start))
        self.threads = [threading.Thread(target=self.listen, args=(rank,), daemon=True) for rank in range(size)]
        for rank in set(range(size)) - set(deaf):
            self.threads[rank].start()

    def listen(self, rank: int) -> None:
        watch = self.ranks[rank]
        while (loss := watch.wait()) is not None:
            self.processes[rank] = loss.process
            self.reports[rank].append((loss.rank, loss.reason, loss.said))
            watch.pass_on(loss)

    def wait(self, *ranks: int) -> None:
        until(lambda: all(self.reports[rank] for rank in ranks))


@pytest.mark.parametrize("size", [2, 5])
def test_all_leave(size):
    watches = Watches(size, beat_s=0.05)
    time.sleep(0.3)
    for rank in watches.ranks:
        rank.close()
    time.sleep(0.2)
    assert watches.reports == [[]] * size


def test_the_threads_end_with_their_connections():
    """Nothing of a watch runs on when all have left."""
    watches = Watches(2, 0, beat_s=0.05)
    for rank in watches.ranks:
        rank.close()
    watches.ranks[0] = None
    watches.threads[1].join(10)
    assert not watches.threads[1].is_alive() and watches.reports == [[], []]


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_is_told_to_all(failing):
    watches = Watches(4)
    watches.ranks[failing].fail("[weights] are\nmissing")
    others = [rank for rank in range(4) if rank != failing]
    watches.wait(*others)
    assert watches.reports[failing] == []
    for rank in others:
        [(_, reason, said)] = watches.reports[rank]
        assert said and reason.endswith("[weights] are missing")
        assert reason.startswith(f"rank {failing} failed: ") == (failing > 0)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_engine_that_fails_is_told_to_all(failing):
    """No program calls `fail`: the watch sees that communicators have been given up."""
    watches = Watches(3, on=on_tcp_ranks, own_words_s=0.2)
    watches.communicators[failing].abort(f"[parallel] rank {failing} failed: [engine] it is\nbroken")
    watches.wait(0, 1, 2)
    assert watches.reports[failing] == [(failing, f"[parallel] rank {failing} failed: [engine] it is\nbroken", True)]
    for rank in {0, 1, 2} - {failing}:
        [(_, reason, said)] = watches.reports[rank]
        assert said and reason.removeprefix("[parallel] ") == f"rank {failing} failed: [engine] it is broken"


def test_a_rank_that_dies():
    watches = Watches(3, 1)
    watches.ranks[1] = None  # closes its connections
    watches.wait(0, 2)
    assert watches.reports[0] == [(1, f"rank 1 {KILLED}", False)]
    assert watches.reports[2][0][1] == watches.reports[0][0][1]


def test_a_reason_is_heard_before_the_end():
    """A rank gives its reason and is gone, before any rank listens."""
    watches = Watches(3, 0, 1, answer_s=0)
    watches.ranks[1].fail("[engine] it is broken")
    watches.ranks[1] = None
    watches.threads[0].start()
    watches.wait(0, 2)
    assert watches.reports[0] == [(1, "rank 1 failed: [engine] it is broken", True)]
    assert watches.reports[2] == [(0, "rank 1 failed: [engine] it is broken", True)]


def test_a_long_reason_is_cut():
    watches = Watches(2)
    watches.ranks[1].fail("ü" * 5000)
    watches.wait(0)
    assert re.fullmatch("rank 1 failed: ü{2000,2100}\ufffd?", watches.reports[0][0][1])


def test_a_rank_that_fails_waits_until_rank_0_has_acted():
    """The launcher ends rank 0 with it, which has to print the line first."""
    watches, acted = Watches(2, 0), []

    def act():
        loss = watches.ranks[0].wait()
        time.sleep(0.3)
        acted.append(loss.reason)
        watches.ranks[0].pass_on(loss)

    thread = threading.Thread(target=act)
    thread.start()
    watches.ranks[1].fail("broken")
    assert acted == ["rank 1 failed: broken"]
    thread.join()


@pytest.mark.parametrize("silent", [0, 1])
def test_a_rank_that_stops(silent):
    watches = Watches(3, silent, beat_s=0.1, silence_s=1.5)
    noticing = [1, 2] if silent == 0 else [0]
    watches.wait(0 if silent else 1, 2)
    for rank in noticing:
        lost, reason, said = watches.reports[rank][0]
        assert lost == silent and not said and f"rank {silent} has not answered for 2 s: it was" in reason
    # The ranks that notice it name its process, which is on their machine; no other does.
    assert [rank for rank in range(3) if watches.processes[rank] == os.getpid()] == noticing


# --- connecting ----------------------------------------------------------------------------------------------------


def own_listening_ports() -> set[int]:
    """Ports at which this process listens."""
    names = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(os.readlink(fd))
    inodes = {match[1] for name in names if (match := re.match(r"socket:\[(\d+)\]", name))}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return {int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and row[9] in inodes}


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


class Loss:
    """What a job does when a rank is lost: `done` has its steps, in order. It ends no process."""

    def __init__(self, monkeypatch, process=0):
        self.done, self.is_told = [], threading.Event()
        self.watch = SimpleNamespace(pass_on=self._pass_on, wait_for_rank_0=lambda: None)
        losses = [None, SimpleNamespace(rank=2, said=False, reason="has ended", process=process)]
        self.watch.wait = losses.pop
        self.job = job = Job.__new__(Job)
        job.launch, job.failure, job._silent, job._left = SimpleNamespace(rank=0), None, 0, False
        job._watch, job._lock, job._telling = self.watch, threading.Lock(), threading.Lock()
        job.communicator = SimpleNamespace(abort=lambda reason: self.done.append("aborted"))
        job._on_failure = []
        timer = SimpleNamespace(start=lambda: self.done.append("timed"))
        monkeypatch.setattr("longcat.parallel.job.threading.Timer", lambda *args: timer)
        monkeypatch.setattr("longcat.parallel.job._OTHERS_SPEAK_SECONDS", 0)
        monkeypatch.setattr(os, "kill", lambda process, how: self.done.append(f"killed {process}"))
        monkeypatch.setattr(os, "_exit", lambda code: self.done.append(f"exit {code}"))

    def _pass_on(self, loss):
        self.is_told.wait(10)
        self.done.append("told")


def test_the_others_know_of_a_loss_before_this_process_ends(monkeypatch):
    """Its main thread may be at its end. They would take this rank for the one that was lost."""
    loss = Loss(monkeypatch, process=123)
    listening = threading.Thread(target=loss.job._listen, args=(loss.watch,))
    listening.start()
    until(lambda: loss.job.failure is not None)
    ending = threading.Thread(target=loss.job._at_exit)
    ending.start()
    time.sleep(0.2)
    assert loss.done == ["timed", "aborted"]
    loss.is_told.set()
    listening.join()
    ending.join()
    assert loss.done[2] == "told" and loss.done.index("killed 123") < loss.done.index("exit 1")


def test_an_engine_that_is_closed_hinders_no_end(monkeypatch):
    """An engine that was closed before still hears of the loss, and raises."""
    loss = Loss(monkeypatch)
    loss.is_told.set()

    def closed(reason):
        raise longcat.Error("[engine] this engine is closed")

    loss.job._on_failure += [closed, lambda reason: loss.done.append("next engine")]
    loss.job._listen(loss.watch)
    assert loss.done == ["timed", "aborted", "next engine", "told"]


@pytest.mark.parametrize("kind", UNKNOWN_PEERS)
def test_unknown_peers_are_refused(kind):
    """A peer without the token is no rank, and neither ends nor delays the job."""
    before, peers = own_listening_ports(), []

    def start(ranks):
        if ranks.rank == 1:
            until(lambda: own_listening_ports() - before)
            [port] = own_listening_ports() - before
            for _ in range(5):
                peers.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                UNKNOWN_PEERS[kind](peers[-1])
        return _core.Watch(ranks, [])

    began = time.monotonic()
    for rank in all_well(on_ranks(3, start)):
        rank.close()
    assert time.monotonic() - began < 5
    for peer in peers:
        peer.close()


def test_many_ranks_connect_at_once():
    """More than the acceptor keeps without a handshake."""
    for rank in all_well(on_ranks(80, lambda ranks: _core.Watch(ranks, []))):
        rank.close()


def test_who_does_not_come_is_missed():
    communicators = testing.thread_communicators(2)

    def start(ranks):
        try:
            if ranks.rank == 0:
                return _core.Watch(ranks, [], connect_s=0.3)
            ranks.all_gather(np.zeros(2 * CARD_BYTES, np.uint8), np.zeros(CARD_BYTES, np.uint8))
            ranks.barrier()
        except _core.Error as error:
            communicators[1].abort("over")
            return str(error)

    line = "[parallel] rank 0: rank 1 has not connected within 0.3 s"
    assert on_ranks(2, start, communicators) == [line, "over"]


def start_at(hosts, **options):
    """A job's watches, or the errors that rank 0 and rank 1 end with."""
    communicators = testing.thread_communicators(2)

    def start(ranks):
        try:
            return _core.Watch(ranks, hosts, **options)
        except _core.Error as error:
            communicators[0].abort("over")
            return str(error)

    return on_ranks(2, start, communicators)


def test_one_of_the_addresses_answers():
    for rank in start_at(["255.255.255.255", "127.0.0.2"]):
        assert isinstance(rank, _core.Watch)
        rank.close()


def test_no_address_answers():
    first, second = start_at(["255.255.255.255"], connect_s=0.5)
    assert first == "[parallel] rank 0: rank 1 has not connected within 0.5 s"
    assert second.startswith("[parallel] rank 1 cannot reach rank 0 at port ") and "255.255.255.255: " in second


def test_own_addresses():
    found = own_addresses()
    assert found and not any(address.startswith("127.") for address in found)
