"""The job to which this process belongs as a rank: joins it, watches the other ranks, and leaves it.

Ranks that mpirun or srun starts talk by their MPI library. Ranks that torchrun starts, or a launcher that sets the same
variables, talk by TCP.

A process joins once, and never leaves to go on alone. If a rank ends without a farewell, the others and the launcher
regard it as lost. So the process of a rank ends in one of two ways. Either all ranks are done and leave together, or
one has failed and all end with an exit code that says so.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import longcat._core as _core
from longcat._core import Error
from longcat.parallel.launch import Launch, find_launch, job_token, rendezvous_address
from longcat.parallel.mpi_library import find_mpi_library

_RANK_0_FIRST_SECONDS = 0.5
_MOST_TURNS = 4  # of so long, in which ranks speak one after the other
_LAST_WORDS_SECONDS = 4.0  # from hearing that a rank is lost to the end of this process
_OTHERS_SPEAK_SECONDS = 1.0  # from hearing that a rank is silent to the end of that one


class Job:
    """This process as a rank of a job.

    Args:
        launch: what the launcher says of it.
    Raises:
        longcat.Error: the ranks cannot be joined to a job here.
    """

    def __init__(self, launch: Launch):
        self.launch = launch
        self.failure: str | None = None  # why the job ends
        self._transport = _join_by_tcp(launch) if uses_tcp(launch) else _core.MpiJob(find_mpi_library(launch))
        self.communicator = self._transport.world()
        if (self.communicator.rank, self.communicator.size) != (launch.rank, launch.size):
            raise Error(
                f"[parallel] {launch.launcher} says rank {launch.rank} of {launch.size}, and {self._transport.library} "
                f"rank {self.communicator.rank} of {self.communicator.size}: start the job with the launcher of that "
                "library"
            )
        self._replicas: dict[int, _core.Communicator] = {}
        self._watch: _core.Watch | None = None
        self._silent = 0  # process id of a rank on this machine that does not answer
        self._on_failure: list[Callable[[str], None]] = []
        self._watching = self._left = False
        self._lock = threading.Lock()  # of `failure`
        self._telling = threading.Lock()  # held from hearing of a loss until the others have been told
        atexit.register(self._at_exit)

    def replica(self, size: int) -> _core.Communicator:
        """Returns the communicator of this process's copy of the model: `size` ranks in a row. Every rank calls it."""
        if size not in self._replicas:
            self._replicas[size] = self.communicator.split(self.launch.rank // size)
        return self._replicas[size]

    def watch(self) -> None:
        """Starts to watch the other ranks. Every rank calls it.

        When a rank dies or stops, this process ends. Rank 0 prints the reason on standard error; rank 1 does when it is
        rank 0 that is lost.
        """
        self._watching = True
        if self._watch is None:
            self._watch = watch = _core.Watch(self.communicator, _hosts_of_rank_0(self.launch))
            threading.Thread(target=self._listen, args=(watch,), name="longcat-watch", daemon=True).start()

    def _listen(self, watch: _core.Watch) -> None:
        """On a thread of its own, until the connections to the other ranks have ended."""
        while (loss := watch.wait()) is not None:
            with self._telling:
                self._silent = loss.process or self._silent
                self._lost(loss)
                watch.pass_on(loss)
            if loss.process:
                time.sleep(_OTHERS_SPEAK_SECONDS)
                self._kill_silent()

    def _kill_silent(self) -> None:
        """Kills the rank that did not answer. The launcher then ends all others: not before they have spoken."""
        if self._silent:
            with contextlib.suppress(OSError):
                os.kill(self._silent, signal.SIGKILL)

    def on_failure(self, call: Callable[[str], None]) -> None:
        """Calls `call` with the reason when the job ends because a rank is lost."""
        self._on_failure.append(call)

    def fail(self, reason: str) -> None:
        """Handles a failure of this rank: tells the others, and gives rank 0 time to print it on standard error."""
        # What all ranks find wrong is rank 0's to say, not "rank 3 failed". Those who cannot reach it say so, the first
        # of them: the launcher then ends the others.
        cut_off = self._watching and self._watch is None
        turns = min(self.launch.rank, _MOST_TURNS if cut_off else 1)
        time.sleep(turns * _RANK_0_FIRST_SECONDS)
        if self._is_news(reason, self.launch.rank if cut_off else 0) and self._watch is not None:
            self._watch.fail(reason)

    def _is_news(self, reason: str, speaker: int = 0) -> bool:
        """Stores why the job ends; rank `speaker` also prints it. Returns False when a reason is stored already."""
        with self._lock:
            if self.failure is not None:
                return False
            self.failure = reason
            if self.launch.rank == speaker:
                print(f"longcat: {reason}", file=sys.stderr, flush=True)
            return True

    def leave(self) -> None:
        """Waits for all ranks to be done, unless the job has failed. The process may not use the job any more.

        Raises:
            longcat.Error: a rank, or an engine of this one, has failed.
        """
        if self._left:
            return
        self._left = True
        if self.failure is None:
            self._transport.finalize()
            if self._watch is not None:
                self._watch.close()

    def _lost(self, loss: _core.RankLoss) -> None:
        """Ends this process after a rank is lost; the thread of the watch calls it.

        Calls that wait for other ranks throw. If that does not end the process, a timer does.
        """
        end = threading.Timer(_LAST_WORDS_SECONDS, os._exit, [1])  # first: what follows may fail, or wait
        end.daemon = True
        end.start()
        reason = loss.reason if loss.reason.startswith("[") else f"[parallel] {loss.reason}"
        if self._is_news(reason, speaker=1 if loss.rank == 0 and not loss.said else 0):
            self.communicator.abort(reason)
            for call in self._on_failure:
                with contextlib.suppress(Error):  # its engine is closed
                    call(reason)

    def _at_exit(self) -> None:
        if self._left:
            return
        error = getattr(sys, "last_value", None)  # by which the script ends
        if error is not None and self.failure is None:
            self.fail(f"{type(error).__name__}: {error}")
        try:
            self.leave()
        except Error as lost:
            self.fail(str(lost))
        if self.failure is not None:
            if self._watch is not None:
                self._watch.wait_for_rank_0()  # the launcher ends all ranks after this one
            with self._telling:
                self._kill_silent()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


_job: Job | None = None


def current_job() -> Job | None:
    """Returns the job that this process has joined; None: there is none."""
    return _job


def join_job(tp: int, ep: int, dp: int = 1) -> Job | None:
    """Joins the job of max(tp, ep) * dp ranks with dp copies of the model. Returns None for one rank.

    Raises:
        ValueError: this process was not started as one of so many ranks: the line that would do it.
        longcat.Error: the ranks cannot be joined to a job here.
    """
    global _job
    world = max(tp, ep) * dp
    launch = find_launch()
    if world == 1:
        return None
    sizes = f"tensor_parallel_size={tp} and expert_parallel_size={ep}"
    if dp > 1:
        sizes = f"data_parallel_size={dp} times the larger of {sizes}"
    if launch is None:
        raise ValueError(
            f"[parallel] {sizes} need {world} ranks, and this process was started alone: mpirun -n {world} {_command()}"
            f", or by torchrun --nproc-per-node {world}"
        )
    if launch.size != world:
        raise ValueError(
            f"[parallel] {sizes} are {world} ranks, and {launch.launcher} started {launch.size}: start {world}"
        )
    if _job is None:
        _job = Job(launch)
    return _job


def _command() -> str:
    program = Path(sys.argv[0] or "SCRIPT")
    if program.name == "__main__.py":
        name = "longcat"
    else:
        name = f"python {program.name}" if program.suffix == ".py" else program.name
    return " ".join([name, *sys.argv[1:]])


def uses_tcp(launch: Launch) -> bool:
    """Returns whether the ranks talk by TCP. The environment alone decides, so that all ranks agree."""
    if launch.launcher == "srun":
        return "MASTER_ADDR" in os.environ and "LONGCAT_MPI" not in os.environ
    return launch.launcher == "torchrun"


def _join_by_tcp(launch: Launch) -> _core.TcpJob:
    host, port = rendezvous_address()
    one_machine = launch.local_size == launch.size
    return _core.TcpJob(host, port, launch.rank, launch.size, one_machine=one_machine, token=job_token())


def _hosts_of_rank_0(launch: Launch) -> list[str]:
    """Returns the hosts of rank 0, one of which the other ranks reach; none: all ranks are on this machine."""
    if launch.local_size == launch.size:
        return []
    if named := os.environ.get("LONGCAT_HOST_IP"):
        return [named]
    from longcat.parallel.addresses import own_addresses

    return [os.environ["MASTER_ADDR"]] if uses_tcp(launch) else own_addresses()


def threads_of_a_rank(launch: Launch) -> int:
    """Returns the threads of a rank on the CPU: the cores it is bound to, or its share of this machine's cores."""
    available = _core.available_threads()
    bound = available < (os.cpu_count() or 1)
    return available if bound else max(1, available // launch.local_size)
