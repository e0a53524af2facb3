"""What launchers leave in the environment, and what this process makes of it."""

import subprocess

import pytest
from longcat import Engine
from longcat.parallel import job as parallel
from longcat.parallel.launch import Launch, find_launch

from support.live import until
from support.processes import assert_nothing_left, job_environment, processes_of

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}  # fmt: skip
MPICH = {"PMI_RANK": "0", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "4"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}  # fmt: skip
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}


@pytest.mark.parametrize(
    "environment, launch",
    [
        ({}, None),
        (OPEN_MPI, Launch("mpirun", 3, 8, 1, 2, "Open MPI")),
        (MPICH, Launch("mpirun", 0, 4, 0, 4, "MPICH")),
        (SRUN, Launch("srun", 5, 7, 1, 2)),
        (TORCHRUN, Launch("torchrun", 1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, None),  # somebody else's
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, None),  # the script of sbatch, outside of srun
        ({"PMI_RANK": "x", "PMI_SIZE": "4"}, None),
        ({"PMI_RANK": "4", "PMI_SIZE": "4"}, None),
    ],
)
def test_launchers(environment, launch):
    assert find_launch(environment) == launch


def test_alone_says_how_to_start(tiny, monkeypatch):
    for name in (*OPEN_MPI, *MPICH, *SRUN, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["/x/script.py", "one"])
    with pytest.raises(
        ValueError, match="need 4 ranks, and this process was started alone: mpirun -n 4 python script.py one"
    ):
        Engine(tiny, tp=2, ep=4)


def test_another_number_of_ranks(tiny, monkeypatch):
    for name, value in MPICH.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match="tensor_parallel_size=2 and expert_parallel_size=1 are 2 ranks, and mpirun started 4"
    ):
        Engine(tiny, tensor_parallel_size=2)


def test_the_transport(monkeypatch):
    """Torchrun's ranks talk by TCP; srun's by MPI, or by TCP where they are told their rendezvous."""
    for name in ("LONGCAT_MPI", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    srun = Launch("srun", 0, 2, 0, 2)
    assert parallel.uses_tcp(Launch("torchrun", 0, 2, 0, 2)) and not parallel.uses_tcp(Launch("mpirun", 0, 2, 0, 2))
    assert not parallel.uses_tcp(srun)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert parallel.uses_tcp(srun)
    monkeypatch.setenv("LONGCAT_MPI", "libmpi.so.40")
    assert not parallel.uses_tcp(srun)


def test_what_is_left_is_seen():
    """The check for left processes can fail, and knows the jobs apart."""
    job, other = job_environment(), job_environment()
    child = subprocess.Popen(["sleep", "60"], env=job, start_new_session=True)
    try:
        until(lambda: child.pid in processes_of(job))
        assert_nothing_left(other)
        with pytest.raises(AssertionError, match=f"processes \\[{child.pid}\\] are left"):
            assert_nothing_left(job)
    finally:
        child.kill()
        child.wait()
    assert_nothing_left(job)
