"""Ranks that talk by TCP, on threads of this process: rendezvous, collectives, failures, unknown peers."""

import contextlib
import os
import re
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from longcat import _core
from longcat.parallel import launch

from support.collectives import (
    DTYPES,
    check_collectives,
    check_groups_beside_each_other,
    check_splits,
)
from support.launcher import reserved_port
from support.ranks import TOKEN, Rank, all_well, join, on_ranks, on_tcp_ranks

HANDSHAKE_BYTES = 56


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_collectives(size, dtype):
    """Small ones, and more than what each rank sums by itself, not a multiple of the ranks."""

    def work(ranks):
        for count in (1, 7, 300, 20_011):
            check_collectives(ranks, count, dtype)
        check_collectives(ranks.split(0), 33, dtype)

    all_well(on_tcp_ranks(size, work))


def test_the_bits_of_ranks_as_threads():
    def work(ranks):
        x = np.random.default_rng(ranks.rank).standard_normal(50_001).astype(np.float32)
        ranks.all_reduce(x)
        return x.tobytes()

    assert all_well(on_tcp_ranks(3, work)) == all_well(on_ranks(3, work))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_splits(size):
    all_well(on_tcp_ranks(size, check_splits))


def test_groups_work_beside_each_other():
    assert all_well(on_tcp_ranks(4, check_groups_beside_each_other)) == [2.0**5, 2.0**6] * 2


def test_all_send_much_at_once():
    """Far more than the kernel's buffers hold, by two communicators at once."""

    def work(ranks):
        other = ranks.split(0)
        x = np.full(6 << 20, ranks.rank, np.uint8)
        results = [np.zeros_like(x), np.zeros_like(x)]
        thread = threading.Thread(target=lambda: other.all_to_all(results[1], x))
        thread.start()
        ranks.all_to_all(results[0], x)
        thread.join()
        expected = np.repeat(np.arange(3, dtype=np.uint8), 2 << 20)
        return all((result == expected).all() for result in results)

    assert all_well(on_tcp_ranks(3, work)) == [True] * 3


def test_one_communicator_waits_while_others_move_much():
    """What one has not read yet, here the rows of a broadcast, holds up no other."""

    def work(ranks):
        control = ranks.split(0)
        message = np.full(4 << 20, 7, np.uint8) if ranks.rank == 0 else np.zeros(4 << 20, np.uint8)
        if ranks.rank == 0:
            thread = threading.Thread(target=lambda: control.broadcast(message, 0))
            thread.start()
        check_collectives(ranks, 20_011, "f32")
        if ranks.rank == 0:
            thread.join()
        else:
            control.broadcast(message, 0)
        return int(message.min())

    assert all_well(on_tcp_ranks(2, work)) == [7, 7]


# --- failures ------------------------------------------------------------------------------------------------------


def test_an_abort_ends_what_this_rank_waits_for():
    told = threading.Event()

    def work(ranks):
        part = ranks.split(0)
        if ranks.rank == 1:
            assert told.wait(20)
            return
        threading.Timer(0.1, ranks.abort, ["enough"]).start()
        for wait in (part.barrier, ranks.barrier, lambda: ranks.split(0)):
            with pytest.raises(_core.Error, match=r"^enough$"):
                wait()
        told.set()

    all_well(on_tcp_ranks(2, work))


@pytest.mark.parametrize("wait", [lambda r: r.all_reduce(np.zeros(1_000_000, np.float32)), lambda r: r.split(0),
                                  lambda r: r.broadcast(np.zeros(3, np.uint8), 1)])  # fmt: skip
def test_a_rank_that_is_gone_is_named(wait):
    line = r"^\[tcp\] rank 1 has closed its connections: it was killed, or it failed$"

    def work(ranks):
        if ranks.rank != 1:
            for _ in range(2):
                with pytest.raises(_core.Error, match=line):
                    wait(ranks)

    all_well(on_tcp_ranks(3, work))


def test_who_watches_may_say_why_a_rank_is_gone():
    """The connection ends first; the better reason comes a moment later."""

    def work(ranks):
        if ranks.rank == 0:
            threading.Timer(0.7, ranks.abort, ["rank 1 was killed"]).start()
            with pytest.raises(_core.Error, match=r"^rank 1 was killed$"):
                ranks.broadcast(np.zeros(3, np.uint8), 1)

    all_well(on_tcp_ranks(2, work))


# --- rendezvous ----------------------------------------------------------------------------------------------------


def test_who_does_not_come_is_named():
    with reserved_port() as holder:
        port = holder.getsockname()[1]
        with pytest.raises(_core.Error, match=r"^\[tcp\] rank 0: rank 1, 2 has not connected within 0.3 s$"):
            join(port, 0, 3, timeout_s=0.3)
        line = rf"^\[tcp\] rank 1: rank 0 cannot be reached at 127.0.0.1:{port} within 0.3 s: Connection refused$"
        with pytest.raises(_core.Error, match=line):
            join(port, 1, 3, timeout_s=0.3)


def test_ranks_come_in_any_order():
    def run(rank):
        time.sleep(0.3 * (2 - rank.rank))
        job = join(port, rank.rank, 3)
        check_splits(job.world())
        job.finalize()

    with reserved_port() as holder:
        port = holder.getsockname()[1]
        all_well(on_ranks(3, run, [Rank(r) for r in range(3)]))


def test_ranks_of_several_machines():
    """Everybody listens at all addresses, and is told where the others are."""

    def run(rank):
        job = _core.TcpJob("localhost", port, rank.rank, 3, one_machine=False, token=TOKEN, timeout_s=10)
        check_splits(job.world())
        job.finalize()

    with reserved_port() as holder:
        port = holder.getsockname()[1]
        holder.close()  # another kind of address than the one that is held
        all_well(on_ranks(3, run, [Rank(r) for r in range(3)]))


def test_one_machine_is_seen_from_no_other():
    """On one machine ranks listen at the loopback address alone."""

    def work(ranks):
        mine = []
        for fd in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(OSError):
                mine.append(os.readlink(fd))
        inodes = {match[1] for name in mine if (match := re.match(r"socket:\[(\d+)\]", name))}
        found = []
        for table in ("tcp", "tcp6"):
            with open(f"/proc/self/net/{table}", encoding="ascii") as lines:
                rows = [line.split() for line in list(lines)[1:]]
            found += [row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes]
        return found

    for found in all_well(on_tcp_ranks(2, work)):
        assert len(found) >= 2 and set(found) == {"0100007F"}


def test_sizes_that_differ():
    def run(rank):
        return join(port, rank.rank, 2 + rank.rank, timeout_s=5)

    with reserved_port() as holder:
        port = holder.getsockname()[1]
        first, second = on_ranks(2, run, [Rank(0), Rank(1)])
    assert str(first) == ("[tcp] rank 0: rank 1 is one of 3, and rank 0 one of 2: start all with the same WORLD_SIZE")
    assert str(second).startswith("[tcp] rank 1: rank 0 has ended during the rendezvous")


def test_a_rank_with_another_token_is_an_unknown_peer():
    def run(rank):
        token = TOKEN if rank.rank == 0 else TOKEN[::-1]
        return join(port, rank.rank, 2, token=token, timeout_s=1)

    with reserved_port() as holder:
        port = holder.getsockname()[1]
        first, second = on_ranks(2, run, [Rank(0), Rank(1)])
    assert str(first) == "[tcp] rank 0: rank 1 has not connected within 1 s"
    assert str(second).endswith("within 1 s: what listens there does not know the token of this job")


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            _core.Error, match=rf"^\[tcp\] rank 0 cannot listen at port {port}: Address already in use: give"
        ):
            join(port, 0, 2)


# --- unknown peers -------------------------------------------------------------------------------------------------


def say(port: int, words: bytes) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=5)
    peer.sendall(words)
    return peer


UNKNOWN_PEERS = {
    "silent": lambda port: say(port, b""),
    "hangs up": lambda port: say(port, b"").close(),
    "garbage": lambda port: say(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(range(256)) * 20),
    "half a handshake": lambda port: say(port, TOKEN[:20]),
    "a handshake of another job": lambda port: say(port, TOKEN[::-1][:32] + bytes(HANDSHAKE_BYTES - 32)),
    "the answer as a token": lambda port: say(port, TOKEN[32:] + bytes(HANDSHAKE_BYTES - 32)),
}


@pytest.mark.parametrize("kind", UNKNOWN_PEERS)
def test_unknown_peers_neither_end_nor_delay_the_rendezvous(kind):
    """More of them than the acceptor keeps at once, before the ranks come and while they make more communicators."""
    with reserved_port() as holder:
        port = holder.getsockname()[1]
        kept = []

        def run(rank):
            if rank.rank == 1:
                deadline = time.monotonic() + 10
                while len(kept) < 80:
                    try:
                        kept.append(UNKNOWN_PEERS[kind](port))
                    except OSError:
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
            job = join(port, rank.rank, 2)
            ranks = job.world()
            if rank.rank == 1:
                kept.append(UNKNOWN_PEERS[kind](port))
            check_splits(ranks)
            check_collectives(ranks, 300, "f32")
            job.finalize()

        began = time.monotonic()
        all_well(on_ranks(2, run, [Rank(0), Rank(1)]))
        assert time.monotonic() - began < 4  # less than an unknown peer has for its handshake
        for peer in filter(None, kept):
            peer.close()


def test_an_unknown_peer_at_rank_0s_port_delays_no_rank():
    """Something else listens there first, answers with garbage, and goes: rank 1 tries again."""
    with reserved_port() as holder:
        port = holder.getsockname()[1]
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()

        def run(rank):
            if rank.rank == 0:
                connection, _ = server.accept()
                connection.sendall(b"x" * 100)
                connection.close()
                server.close()
            job = join(port, rank.rank, 2)
            check_splits(job.world())
            job.finalize()

        all_well(on_ranks(2, run, [Rank(0), Rank(1)]))


# --- what the launcher says ----------------------------------------------------------------------------------------


def test_the_rendezvous_address():
    said = {"MASTER_ADDR": "host7", "MASTER_PORT": "29500"}
    assert launch.rendezvous_address(said) == ("host7", 29500)
    assert launch.rendezvous_address({**said, "TORCHELASTIC_USE_AGENT_STORE": "True"}) == ("host7", 29501)
    assert launch.rendezvous_address({**said, "TORCHELASTIC_USE_AGENT_STORE": "False"}) == ("host7", 29500)
    for wrong in ({"MASTER_ADDR": "host7"}, {**said, "MASTER_PORT": "x"}, {**said, "MASTER_PORT": "70000"}):
        with pytest.raises(
            _core.Error, match=r"^\[tcp\] rendezvous at MASTER_ADDR and MASTER_PORT: found MASTER_ADDR="
        ):
            launch.rendezvous_address(wrong)


def test_the_token():
    said = {"MASTER_ADDR": "host7", "MASTER_PORT": "29500"}
    token = launch.job_token(said)
    assert len(token) == 64 and token[:32] != token[32:] and token == launch.job_token({**said, "RANK": "1"})
    for more in ({"LONGCAT_TOKEN": "secret"}, {"TORCHELASTIC_RUN_ID": "7"}, {"MASTER_PORT": "29501"}):
        assert not {token[:32], token[32:]} & {launch.job_token({**said, **more})[:32]}
