"""What a launcher says about the job this process belongs to: its environment variables, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """This process among the ranks of a job.

    Args:
        launcher: "mpirun", "srun" or "torchrun".
        rank, size: of the job; local_rank, local_size: on this machine.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int


# launcher -> variables of rank, size, local rank and local size. The first whose rank and size are set says it: a job
# step of srun in which mpirun starts the ranks is mpirun's.
_VARIABLES = [
    ("mpirun", *(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
]


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """The launch that `environment` tells of; None: this process was started alone."""
    for launcher, *names in _VARIABLES:
        rank, size, local_rank, local_size = (_number(environment.get(name)) for name in names)
        if rank is None or size is None or not 0 <= rank < size:
            continue
        if launcher == "torchrun" and "MASTER_ADDR" not in environment:  # RANK alone may be anybody's
            continue
        if launcher == "srun":
            local_size = _tasks_here(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), environment)
        return Launch(launcher, rank, size, local_rank or 0, local_size or size)
    return None


def require_alone(what: str) -> None:
    """Raises ValueError in one of several processes, which would all do the same work, and write the same files.

    Args:
        what: the user asked for.
    """
    launch = find_launch()
    if launch is not None and launch.size > 1:
        raise ValueError(f"{what} is the work of one process, and {launch.launcher} started {launch.size}: start one")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _tasks_here(text: str, environment: Mapping[str, str]) -> int | None:
    """Of SLURM's "2(x3),1": two tasks on each of three machines, one on the next."""
    counts: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        if not count.isdecimal():
            return None
        counts += [int(count)] * (_number(times.rstrip(")")) or 1)
    node = _number(environment.get("SLURM_NODEID")) or 0
    return counts[node] if node < len(counts) else None
