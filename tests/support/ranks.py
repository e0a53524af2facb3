"""The ranks of a job as threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from longcat import _core
from longcat import _testing as testing

from support.launcher import reserved_port

WAIT_SECONDS = 120
TOKEN = bytes(range(64))  # of TCP jobs


def on_ranks(size: int, work: Callable[[Any], Any], communicators: Sequence[Any] | None = None) -> list[Any]:
    """Calls work(communicator) on a thread for each rank; returns what each returned, or raised.

    Args:
        work: called without order; a collective in it waits for all.
    """
    communicators = communicators or testing.thread_communicators(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(communicators[rank])
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), "a rank waits for ever"
    return results


def all_well(results: list[Any]) -> list[Any]:
    """The results, none of which is an error."""
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class Rank:
    """What on_ranks needs to know of a rank that has not met the others yet."""

    def __init__(self, rank: int):
        self.rank = rank


def on_tcp_ranks(size: int, work, **options) -> list:
    """Calls work(communicator) on a thread for each rank, once all have met.

    Args:
        work: the rank leaves the job when it returns.
        options: of TcpJob.
    """
    with reserved_port() as holder:
        port = holder.getsockname()[1]

        def run(rank):
            return work(join(port, rank.rank, size, **options).world())

        return on_ranks(size, run, [Rank(rank) for rank in range(size)])


def join(port: int, rank: int, size: int, **options) -> _core.TcpJob:
    return _core.TcpJob("nowhere", port, rank, size, **{"one_machine": True, "token": TOKEN, "timeout_s": 20} | options)


class ThreadJob:
    """Engines on threads as ranks, all following rank 0's.

    Args:
        make: makes the engine of a rank from its communicator and the options.
        tp, ep: layout; options: of _core.EngineOptions.
    """

    def __init__(self, folder: str, tp: int, ep: int = 1, make: Callable[..., Any] = _core.Engine, **options: Any):
        core = _core.EngineOptions()
        core.max_num_seqs = 4
        core.num_threads = 1
        core.kv_cache_memory = 1 << 26
        core.tensor_parallel_size, core.expert_parallel_size = tp, ep
        for name, value in options.items():
            setattr(core, name, value)
        self.closed = False
        self.engines = all_well(on_ranks(max(tp, ep), lambda ranks: make(folder, core, communicator=ranks)))
        for engine in self.engines[1:]:
            engine.start()

    @property
    def leader(self) -> Any:
        return self.engines[0]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.leader.start()  # its thread tells the others to stop
        stop = "close" if hasattr(self.leader, "close") else "stop"
        all_well(on_ranks(len(self.engines), lambda ranks: getattr(self.engines[ranks.rank], stop)()))

    def __enter__(self) -> ThreadJob:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
