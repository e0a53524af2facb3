"""Reads the environment variables by which a launcher describes a job and the place of this process in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from longcat._core import Error


@dataclass(frozen=True)
class Launch:
    """The place of this process among the ranks of a job.

    Args:
        launcher: "mpirun", "srun" or "torchrun".
        rank, size: of the job; local_rank, local_size: on this machine.
        mpi: of an mpirun: "Open MPI", or "MPICH" with its relatives.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    mpi: str | None = None


# launcher -> variables of rank, size, local rank and local size. The first whose rank and size are set says it: a job
# step of srun in which mpirun starts the ranks is mpirun's.
_VARIABLES = [
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
]
_MPI = {"OMPI_COMM_WORLD_RANK": "Open MPI", "PMI_RANK": "MPICH"}


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Returns the launch that `environment` describes; None: this process was started alone."""
    for launcher, *names in _VARIABLES:
        rank, size, local_rank, local_size = (_number(environment.get(name)) for name in names)
        if rank is None or size is None or not 0 <= rank < size:
            continue
        if launcher == "torchrun" and "MASTER_ADDR" not in environment:  # RANK alone may be anybody's
            continue
        if launcher == "srun":
            local_size = _tasks_here(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment)
        mpi = _MPI.get(names[0])
        return Launch(launcher, rank, size, local_rank or 0, local_size or size, mpi)
    return None


def require_alone(what: str) -> None:
    """Raises ValueError when a launcher started several processes: they would all do the same work.

    Args:
        what: the command of the user, for the message.
    """
    launch = find_launch()
    if launch is not None and launch.size > 1:
        raise ValueError(f"{what} is the work of one process, and {launch.launcher} started {launch.size}: start one")


def rendezvous_address(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Returns the host and port of rank 0 in a job without MPI: MASTER_ADDR and MASTER_PORT.

    Torchrun's agent mostly listens at that port itself, and says so; then it is the next one.

    Raises:
        longcat.Error: the launcher does not name them.
    """
    host, port = environment.get("MASTER_ADDR"), _number(environment.get("MASTER_PORT"))
    if not host or port is None or not 0 < port < 65535:
        found = ", ".join(f"{name}={environment.get(name)!r}" for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise Error(f"[tcp] rendezvous at MASTER_ADDR and MASTER_PORT: found {found}, expected a host and a port")
    return host, port + (environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True")


def job_token(environment: Mapping[str, str] = os.environ) -> bytes:
    """Returns 64 bytes by which ranks of a job know each other: half for the connecting side, half for the other.

    With LONGCAT_TOKEN only the ranks know them. Without it they are no secret, and only keep jobs apart.
    """
    names = ("LONGCAT_TOKEN", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT")
    known = "\n".join(environment.get(name, "") for name in names)
    return b"".join(hashlib.sha256(f"longcat {who}\n{known}".encode()).digest() for who in ("connects", "answers"))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _tasks_here(text: str, environment: Mapping[str, str]) -> int | None:
    """Reads SLURM's list of tasks: "2(x3),1" is two tasks on each of three machines, one on the next."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        if not count.isdecimal():
            return None
        counts += [int(count)] * (_number(times.rstrip(")")) or 1)
    node = _number(environment.get("SLURM_NODEID")) or 0
    return counts[node] if node < len(counts) else None
