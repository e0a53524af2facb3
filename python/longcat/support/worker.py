"""Untrusted work in processes of its own: templates, grammars and large bodies.

A `Pool` starts one process, the keeper. The keeper imports a module, lets it prepare, and forks workers from itself: a
new worker takes some milliseconds and shares the keeper's memory. A worker has one open file, its socket to the caller.
The caller ends a job by closing that socket: the keeper then kills the worker and forks another.

    caller -- control socket: ends of workers' sockets --> keeper
       \\------ a worker's socket: jobs, answers ---------> worker, a fork of the keeper

The module has a function `prepare(setup)`. It returns the work: a function from the bytes of a job to the bytes of an
answer.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from longcat._core import Error
from longcat.support.child_process import environment
from longcat.support.json_types import JsonObject

Work = Callable[[bytes | bytearray], bytes]
Buffer = bytes | bytearray | memoryview

_PROGRAM = "import sys; sys.path = [p for p in sys.path if p]; from longcat.support.worker import keep; keep()"
# Of the environment, a worker gets these alone: it has no use for keys and tokens.
_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LD_PRELOAD", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_JOB = struct.Struct("<QQd")  # bytes that follow, memory [bytes], processor time [s]
_ANSWER = struct.Struct("<cQ")  # kind, bytes that follow
_DONE, _LAST, _NO_MEMORY, _MISTAKE, _ENDED = b"a", b"l", b"m", b"x", b"e"
_UNREAD = b"unread"  # why a worker ended: before it read its job
_TRIES = 3  # to find a worker that reads the job
_MAX_ANSWER = 256 << 20  # bytes
_GROWN = 16 << 20  # bytes; a worker whose memory grew by more ends after its answer
_MAX_MESSAGE = 4096
_PR_SET_PDEATHSIG = 1

_is_worker = False


class JobFailed(Exception):
    """A job without an answer.

    Args:
        reason: "time" or "memory": it took more than it may; "killed": its process ended for another reason.
    """

    def __init__(self, reason: str):
        super().__init__(f"[worker] the job failed: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """The limits of a job.

    Args:
        cpu_seconds: processor time.
        memory_bytes: beyond those that a new worker has.
        wall_seconds: for the case that the machine is busy, or the job sleeps.
    """

    cpu_seconds: float
    memory_bytes: int
    wall_seconds: float


class Pool:
    """Workers for the jobs of one module. They start with the first job, and end with this process at the latest.

    Any thread and any event loop may call. A process that is forked from this one starts workers of its own.

    Args:
        module: its name.
        setup: the argument of its `prepare`.
        num_workers: jobs at one time; others wait.
        niceness: of their processes: above 0, others have the processors first.
    """

    _lock: threading.RLock
    _control: socket.socket | None
    _free: list[socket.socket]
    _waiting: deque[Future[socket.socket]]

    def __init__(self, module: str, setup: JsonObject, num_workers: int, niceness: int = 0):
        self.module = module
        self._setup = setup
        self._task = {"module": module, "setup": setup, "num_workers": num_workers, "niceness": niceness}
        self._work: Work | None = None  # within a worker
        self._forget()
        _pools.add(self)

    def call(self, job: Buffer, limits: Limits) -> bytes | bytearray:
        """The answer to a job. Within a worker the job runs in place, by the limits of that worker's own job.

        Raises:
            JobFailed: there is none.
            longcat.Error: the workers do not start.
        """
        if _is_worker:
            self._work = self._work or importlib.import_module(self.module).prepare(self._setup)
            return self._work(bytes(job))
        for _ in range(_TRIES):
            with self._exchange(self._take().result()) as exchange:
                exchange.worker.settimeout(limits.wall_seconds)
                exchange.kind, answer = _talk(exchange.worker, job, limits)
            if not exchange.is_unread(answer):
                return self._answer(exchange.kind, answer)
        raise JobFailed("killed")

    async def acall(self, job: Buffer, limits: Limits) -> bytes | bytearray:
        """As `call`, for an event loop. A cancelled call ends the work."""
        for _ in range(_TRIES):
            with self._exchange(await asyncio.wrap_future(self._take())) as exchange:
                exchange.worker.setblocking(False)
                exchange.kind, answer = await asyncio.wait_for(
                    _atalk(exchange.worker, job, limits), limits.wall_seconds
                )
            if not exchange.is_unread(answer):
                return self._answer(exchange.kind, answer)
        raise JobFailed("killed")

    def start(self) -> None:
        """Starts the workers before the first job, without waiting for them.

        Raises:
            longcat.Error: the system starts no process.
        """
        with self._lock:
            if self._control is None:
                self._start()

    def close(self) -> None:
        """Ends all workers."""
        with self._lock:
            control, waiting = self._control, list(self._waiting)
            self._forget_workers()
        if control is not None:
            atexit.unregister(self.close)
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
        _fail(waiting, Error(f"[worker] {self.module} is closed"))

    # --- workers that are free ---------------------------------------------------------------------------------------

    def _take(self) -> Future[socket.socket]:
        """A free worker, which the caller is to give back or to close."""
        free: Future[socket.socket] = Future()
        with self._lock:
            self.start()
            while self._free:
                worker = self._free.pop()
                if not _has_news(worker):
                    free.set_running_or_notify_cancel()
                    free.set_result(worker)
                    return free
                worker.close()  # it was killed meanwhile
            self._waiting.append(free)
        return free

    def _give(self, worker: socket.socket, control: socket.socket | None) -> None:
        with self._lock:
            while self._control is control and self._waiting:
                waiting = self._waiting.popleft()
                if waiting.set_running_or_notify_cancel():
                    waiting.set_result(worker)
                    return
            if self._control is control:
                self._free.append(worker)
                return
        worker.close()

    @contextlib.contextmanager
    def _exchange(self, worker: socket.socket) -> Iterator[_Exchange]:
        """Around a job and its answer: gives the worker back if its answer says so, and ends it otherwise."""
        exchange = _Exchange(worker)
        control = self._control
        try:
            yield exchange
        except (TimeoutError, asyncio.TimeoutError):
            raise JobFailed("time") from None
        except (OSError, EOFError):
            raise JobFailed("killed") from None
        finally:
            if exchange.kind == _DONE:
                self._give(worker, control)
            else:
                worker.close()

    def _answer(self, kind: bytes, answer: bytearray) -> bytearray:
        if kind in (_DONE, _LAST):
            return answer
        if kind == _MISTAKE:
            raise RuntimeError(f"[worker] {self.module}: {answer.decode(errors='replace')[:_MAX_MESSAGE]}")
        raise JobFailed("memory" if kind == _NO_MEMORY else answer.decode() if kind == _ENDED else "killed")

    # --- the keeper ------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = {name: value for name, value in environment().items() if name in _KEPT or name.endswith("SAN_OPTIONS")}
        with theirs:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=kept | _ONE_THREAD,
                    start_new_session=True,  # a Ctrl-C is not for it
                )
            except OSError as error:
                control.close()
                raise Error(f"[worker] {self.module} does not start: {error}") from None
        self._control = control
        atexit.register(self.close)
        name = f"longcat-{self.module.rpartition('.')[2]}"
        threading.Thread(target=self._receive, args=(control, process), name=name, daemon=True).start()

    def _receive(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        """Takes new workers from the keeper until that ends."""
        problem = "its process has ended"
        num_workers = 0
        with control, contextlib.suppress(OSError):
            control.sendall(json.dumps(self._task).encode())
            while True:
                message, files, _, _ = socket.recv_fds(control, _MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
                if not message:
                    break
                if files:
                    num_workers += 1
                    self._give(socket.socket(fileno=files[0]), control)
                else:
                    problem = message.decode(errors="replace")
        process.wait()
        with self._lock:
            if self._control is not control:
                return
            waiting = list(self._waiting)
            self._forget_workers()
            if num_workers and waiting:  # it worked, and was killed
                with contextlib.suppress(Error):
                    self._start()
                    self._waiting.extend(waiting)
                    return
        _fail(waiting, Error(f"[worker] {self.module} does not start: {problem}"))

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._forget_workers()

    def _forget_workers(self) -> None:
        self._control = None
        self._free = []  # closed when they are collected
        self._waiting = deque()


@dataclass
class _Exchange:
    """A job that a worker has."""

    worker: socket.socket
    kind: bytes = b""  # of the answer

    def is_unread(self, answer: bytearray) -> bool:
        """Returns whether the worker was killed before it read the job: another one then gets the job."""
        return self.kind == _ENDED and answer == _UNREAD


def _fail(waiting: list[Future[socket.socket]], error: Error) -> None:
    for one in waiting:
        if one.set_running_or_notify_cancel():
            one.set_exception(error)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in _pools:
        pool._forget()


os.register_at_fork(after_in_child=_forget_all)


def _has_news(end: socket.socket) -> bool:
    """Returns whether there is something to read. A free worker sends nothing, unless it has ended."""
    poll = select.poll()
    poll.register(end, select.POLLIN)
    return bool(poll.poll(0))


def _head(job: Buffer, limits: Limits) -> bytes:
    return _JOB.pack(len(job), limits.memory_bytes, limits.cpu_seconds)


def _read(worker: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes.

    Raises:
        EOFError: fewer came.
    """
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        num_bytes = worker.recv_into(view[at:])
        if not num_bytes:
            raise EOFError
        at += num_bytes
    return data


def _talk(worker: socket.socket, job: Buffer, limits: Limits) -> tuple[bytes, bytearray]:
    """Sends a job; the kind of the answer, and the answer."""
    try:
        worker.send(_head(job, limits))
        worker.sendall(job)
    except BrokenPipeError:
        return _ENDED, bytearray(_UNREAD)
    kind, size = _ANSWER.unpack(_read(worker, _ANSWER.size))
    return kind, _read(worker, _checked_size(size))


async def _atalk(worker: socket.socket, job: Buffer, limits: Limits) -> tuple[bytes, bytearray]:
    """As `_talk`, for an event loop."""
    loop = asyncio.get_running_loop()

    async def read(size: int) -> bytearray:
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            num_bytes = await loop.sock_recv_into(worker, view[at:])
            if not num_bytes:
                raise EOFError
            at += num_bytes
        return data

    try:
        worker.send(_head(job, limits))  # which a worker that waits has room for
        await loop.sock_sendall(worker, job)
    except BrokenPipeError:
        return _ENDED, bytearray(_UNREAD)
    kind, size = _ANSWER.unpack(await read(_ANSWER.size))
    return kind, await read(_checked_size(size))


def _checked_size(size: int) -> int:
    if size > _MAX_ANSWER:
        raise EOFError("this is no answer")
    return size


# --- in the keeper -------------------------------------------------------------------------------------------------

# Why a worker ended, by its signal: SIGPROF is the limit of processor time.
_REASONS: dict[int, str] = {signal.SIGPROF: "time", signal.SIGKILL: "killed"}


def keep() -> None:
    """The keeper: prepares, forks workers, and kills those whose callers left. Ends with its caller."""
    control = socket.socket(fileno=0)
    task = json.loads(control.recv(1 << 20))
    try:
        work = importlib.import_module(task["module"]).prepare(task["setup"])
    except Exception as error:
        control.send(f"{type(error).__name__}: {error}".encode()[:_MAX_MESSAGE])
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a grammar that takes all memory makes its compiler complain
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # systemd sends it to all: jobs of a draining server go on
    os.nice(task["niceness"])
    gc.collect()
    gc.freeze()  # so that a worker's collections copy none of it
    with contextlib.suppress(BrokenPipeError):
        _Keeper(control, work, task["num_workers"]).run()


class _Keeper:
    def __init__(self, control: socket.socket, work: Work, num_workers: int):
        self._control = control
        self._work = work
        self._num_workers = num_workers
        self._workers: dict[int, socket.socket] = {}  # by process, the worker's own end
        self._poll = select.poll()
        self._libc = ctypes.CDLL(None)

    def run(self) -> None:
        bell, ringer = socket.socketpair()
        ringer.setblocking(False)
        signal.set_wakeup_fd(ringer.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll.register(bell, select.POLLIN)
        self._poll.register(self._control, 0)
        while True:
            while len(self._workers) < self._num_workers:
                self._fork()
            left = {file for file, _ in self._poll.poll()}
            if self._control.fileno() in left:
                break
            if bell.fileno() in left:
                bell.recv(4096)
            for process, end in self._workers.items():
                if end.fileno() in left:  # the caller has closed its own
                    os.kill(process, signal.SIGKILL)
                    self._poll.unregister(end)
            while self._workers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._bury(*ended)
        for process in self._workers:
            os.kill(process, signal.SIGKILL)

    def _fork(self) -> None:
        theirs, end = socket.socketpair()
        process = os.fork()
        if process == 0:
            try:
                self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # should the keeper be killed
                os.dup2(end.fileno(), 0)
                os.closerange(3, 1 << 10)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _run_jobs(self._work)
            finally:
                os._exit(1)
        self._workers[process] = end
        self._poll.register(end, 0)
        with theirs:
            socket.send_fds(self._control, [b"w"], [theirs.fileno()])

    def _bury(self, process: int, status: int) -> None:
        """Tells the caller why there is no answer."""
        end = self._workers.pop(process)
        with contextlib.suppress(KeyError):
            self._poll.unregister(end)
        with end, contextlib.suppress(OSError):
            reason = "killed"
            if os.WIFSIGNALED(status):
                reason = _REASONS.get(os.WTERMSIG(status), "memory")  # C code without memory ends by a fault
            end.setblocking(False)
            if _has_news(end):
                reason = _UNREAD.decode()
            end.send(_ANSWER.pack(_ENDED, len(reason)) + reason.encode())


def _run_jobs(work: Work) -> None:
    """The worker: one job after the other, until the caller leaves."""
    global _is_worker
    _is_worker = True
    caller = socket.socket(fileno=0)
    at_first = _data_bytes()
    before, _ = resource.getrlimit(resource.RLIMIT_DATA)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(EOFError, OSError):
        while True:
            size, memory, seconds = _JOB.unpack(_read(caller, _JOB.size))
            job = _read(caller, size)
            _limit(resource.RLIMIT_DATA, at_first + memory)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            kind = _DONE
            try:
                answer = work(job)
            except MemoryError:
                kind, answer = _NO_MEMORY, b""
            except Exception as error:
                kind, answer = _MISTAKE, f"{type(error).__name__}: {error}".encode(errors="replace")
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_DATA, (before, resource.getrlimit(resource.RLIMIT_DATA)[1]))
            del job
            if kind == _DONE and _data_bytes() > at_first + _GROWN:
                kind = _LAST
            caller.sendall(_ANSWER.pack(kind, len(answer)) + answer)
            if kind != _DONE:
                return


def _data_bytes() -> int:
    """What RLIMIT_DATA counts."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
