"""What launchers leave in the environment, and what this process makes of it."""

import subprocess

import pytest
from longcat import Engine, _core
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
        (OPEN_MPI, Launch("mpirun", 3, 8, 1, 2)),
        (MPICH, Launch("mpirun", 0, 4, 0, 4)),
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


def test_a_build_without_the_plugin_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "PLUGIN_FOLDER", tmp_path)
    monkeypatch.delenv("LONGCAT_MPI", raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(_core.Error, match="no plugin for Open MPI: install an MPI library whose mpicc is on the PATH"):
        parallel.find_plugin(Launch("mpirun", 0, 2, 0, 2))


def test_the_plugin_is_the_launchers(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "PLUGIN_FOLDER", tmp_path)
    monkeypatch.delenv("LONGCAT_MPI", raising=False)
    for name in ("openmpi", "mpich"):
        (tmp_path / f"longcat_mpi.{name}.so").touch()
    for variable, name in (("OMPI_COMM_WORLD_RANK", "openmpi"), ("PMI_RANK", "mpich")):
        with monkeypatch.context() as inner:
            inner.delenv("OMPI_COMM_WORLD_RANK", raising=False)
            inner.setenv(variable, "0")
            assert parallel.find_plugin(Launch("mpirun", 0, 2, 0, 2)) == str(tmp_path / f"longcat_mpi.{name}.so")
    monkeypatch.setenv("LONGCAT_MPI", "/somewhere/else.so")
    assert parallel.find_plugin(Launch("mpirun", 0, 2, 0, 2)) == "/somewhere/else.so"


def test_the_transport(monkeypatch, tmp_path):
    """Torchrun's ranks talk by TCP; srun's by MPI, or by TCP where a build without MPI is told where to meet."""
    monkeypatch.setattr(parallel, "PLUGIN_FOLDER", tmp_path)
    for name in ("LONGCAT_MPI", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    srun = Launch("srun", 0, 2, 0, 2)
    assert parallel.uses_tcp(Launch("torchrun", 0, 2, 0, 2)) and not parallel.uses_tcp(Launch("mpirun", 0, 2, 0, 2))
    assert not parallel.uses_tcp(srun)
    with pytest.raises(_core.Error, match="no MPI plugin: .*; or set MASTER_ADDR and MASTER_PORT, and the ranks meet"):
        parallel.find_plugin(srun)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    assert parallel.uses_tcp(srun)
    (tmp_path / "longcat_mpi.openmpi.so").touch()
    assert not parallel.uses_tcp(srun)


@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_plugin_that_does_not_load(tmp_path, content):
    path = tmp_path / "plugin.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(_core.Error, match=r"\[mpi\] .*plugin.so cannot be loaded: "):
        _core.MpiJob(str(path))


def test_a_library_that_is_no_plugin():
    with pytest.raises(_core.Error, match=r"\[mpi\] libm.so.6 is no plugin of this version of longcat"):
        _core.MpiJob("libm.so.6")


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
