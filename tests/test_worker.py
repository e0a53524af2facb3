"""Workers for untrusted work: whatever a job does, its caller gets an answer or one error, and the next job runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from longcat import Error
from longcat.support.worker import JobFailed, Limits, Pool

from support.live import is_running, until

TESTS = Path(__file__).parent
LIMITS = Limits(cpu_seconds=20, memory_bytes=64 << 20, wall_seconds=100)
SHORT = Limits(cpu_seconds=0.2, memory_bytes=64 << 20, wall_seconds=100)


@pytest.fixture(scope="module", autouse=True)
def path():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setenv("SECRET_KEY", "hush")
        yield


@pytest.fixture(scope="module")
def pool(path):
    pool = Pool("support.worker_jobs", {}, num_workers=2)
    yield pool
    pool.close()


@contextlib.contextmanager
def own_pool(num_workers: int = 1, **setup: str):
    pool = Pool("support.worker_jobs", setup, num_workers)
    try:
        yield pool
    finally:
        pool.close()


def facts(pool: Pool) -> dict:
    return json.loads(pool.call(b"facts", LIMITS))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


FAULTS = {
    "loop": (SHORT, "time"),
    "loop-in-c": (SHORT, "time"),
    "sleep": (Limits(cpu_seconds=20, memory_bytes=1 << 20, wall_seconds=0.3), "time"),
    "memory": (LIMITS, "memory"),
    "abort": (LIMITS, "memory"),
    "kill": (LIMITS, "killed"),
    "exit": (LIMITS, "killed"),
    "garbage": (LIMITS, "killed"),
}


@pytest.mark.parametrize("way", ["call", "acall"])
@pytest.mark.parametrize("what", FAULTS)
def test_a_job_that_goes_wrong_fails_alone(pool, what, way):
    limits, reason = FAULTS[what]
    with pytest.raises(JobFailed) as caught:
        call(pool, way, what.encode(), limits)
    assert caught.value.reason == reason
    assert call(pool, way, b"length abc", LIMITS) == b"3"


def call(pool: Pool, way: str, job: bytes, limits: Limits) -> bytes:
    if way == "call":
        return pool.call(job, limits)
    return asyncio.run(pool.acall(job, limits))


@pytest.mark.parametrize("way", ["call", "acall"])
def test_jobs_and_answers_of_any_size(pool, way):
    for size in (0, 1, 100_000, 5_000_000):
        assert call(pool, way, b"length " + b"x" * size, LIMITS) == str(size).encode()
        assert call(pool, way, f"answer {size}".encode(), LIMITS) == b"y" * size


def test_a_mistake_in_the_work_is_told(pool):
    with pytest.raises(RuntimeError, match=r"\[worker\] support.worker_jobs: KeyError: 'a bug'"):
        pool.call(b"bug", LIMITS)


def test_a_worker_is_kept_until_its_memory_grows():
    with own_pool() as pool:
        first = facts(pool)["pid"]
        assert facts(pool)["pid"] == first
        assert pool.call(b"grow", LIMITS) == b"done"
        assert facts(pool)["pid"] != first
        until(lambda: not is_running(first))


def test_a_worker_sees_no_secrets_and_has_no_files(pool):
    with open(__file__) as file:
        os.set_inheritable(file.fileno(), True)
        with own_pool() as pool:
            found = facts(pool)
    assert "SECRET_KEY" not in found["environ"] and "hush" not in str(found)
    assert [name.partition(":")[0] for name in found["files"]] == ["socket", "/dev/null", "/dev/null"]


def test_a_module_that_fails_is_named():
    for _ in range(2):
        with own_pool(fails="no such tokenizer") as pool, pytest.raises(Error, match="ValueError: no such tokenizer"):
            pool.call(b"length", LIMITS)
    missing = Pool("support.no_such_module", {}, 1)
    with pytest.raises(Error, match="support.no_such_module does not start: ModuleNotFoundError"):
        missing.call(b"length", LIMITS)


def test_the_work_of_a_caller_who_left_ends():
    async def leave(pool: Pool) -> None:
        task = asyncio.ensure_future(pool.acall(b"sleep", LIMITS))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.wait_for(pool.acall(b"length a", LIMITS), 30) == b"1"  # by the only worker

    with own_pool() as pool:
        first = facts(pool)["pid"]
        asyncio.run(leave(pool))
        until(lambda: not is_running(first))


def test_jobs_that_wait_are_dropped_when_their_callers_leave():
    async def run(pool: Pool) -> None:
        tasks = [asyncio.ensure_future(pool.acall(b"sleep", LIMITS)) for _ in range(5)]
        await asyncio.sleep(0.2)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.wait_for(pool.acall(b"length a", LIMITS), 30) == b"1"

    with own_pool() as pool:
        asyncio.run(run(pool))


def test_threads_and_event_loops_share_a_pool(pool):
    answers: list[bytes] = []

    async def loop() -> None:
        answers.extend(await asyncio.gather(*(pool.acall(b"length abc", LIMITS) for _ in range(20))))

    threads = [threading.Thread(target=lambda: asyncio.run(loop())) for _ in range(2)]
    threads += [threading.Thread(target=lambda: answers.append(pool.call(b"length abc", LIMITS))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"3"] * 48


def test_a_forked_process_has_workers_of_its_own(pool):
    before = facts(pool)["pid"]
    process = os.fork()
    if process == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = 0 if parent(parent(facts(pool)["pid"])) == os.getpid() else 2
        os._exit(status)
    assert os.waitpid(process, 0)[1] == 0
    assert facts(pool)["pid"] == before


@pytest.mark.parametrize("who", ["worker", "keeper"])
def test_processes_that_are_killed_are_replaced(who):
    with own_pool() as pool:
        worker = facts(pool)["pid"]
        ended = worker if who == "worker" else parent(worker)
        os.kill(ended, signal.SIGKILL)
        until(lambda: not is_running(worker))
        assert facts(pool)["pid"] != worker


def test_a_signal_to_the_whole_group_ends_no_job():
    """As a supervisor that stops a server does, while the server drains."""
    with own_pool() as pool:
        worker = facts(pool)["pid"]
        for process in (worker, parent(worker)):
            os.kill(process, signal.SIGTERM)
        assert facts(pool)["pid"] == worker


def test_a_keeper_that_is_killed_under_callers_is_replaced():
    async def run(pool: Pool) -> None:
        worker = json.loads(await pool.acall(b"facts", LIMITS))["pid"]
        keeper = parent(worker)
        working = asyncio.ensure_future(pool.acall(b"sleep", LIMITS))
        await asyncio.sleep(0.1)
        waiting = asyncio.ensure_future(pool.acall(b"length abc", LIMITS))
        await asyncio.sleep(0.1)
        os.kill(keeper, signal.SIGKILL)
        assert await asyncio.wait_for(waiting, 60) == b"3"
        with pytest.raises(JobFailed):
            await working
        until(lambda: not is_running(worker))

    with own_pool() as pool:
        asyncio.run(run(pool))


END = {
    "exits": "",
    "is killed": "os.kill(os.getpid(), 9)",
    "leaves while a job runs": "threading.Thread(target=pool.call, args=(b'loop', limits), daemon=True).start(); "
    "time.sleep(0.2); os._exit(0)",
}


@pytest.mark.parametrize("how", END)
def test_no_process_outlives_its_caller(how):
    program = (
        "import os, threading, time\nfrom longcat.support.worker import Pool, Limits\n"
        "limits = Limits(100, 64 << 20, 100)\npool = Pool('support.worker_jobs', {}, 2)\n"
        f"print(pool.call(b'facts', limits).decode(), flush=True)\n{END[how]}\n"
    )
    package = str(Path(sys.modules["longcat"].__file__ or "").parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([package, str(TESTS)])},
    )
    assert not done.stderr
    worker = json.loads(done.stdout)["pid"]
    until(lambda: not is_running(worker))
