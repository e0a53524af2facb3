"""Our table of the binary interfaces of MPI, against the header of every MPI library at hand."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import MPICH, TESTS

COMPILERS = {  # by the ABI of the programs that they compile
    "Open MPI": Path(sys.executable).with_name("mpicxx"),
    "MPICH": MPICH / "bin/mpicxx",
    "standard": MPICH / "bin/mpicxx_abi",
    "": Path(shutil.which("mpicxx") or "/nowhere"),  # whichever it is
}


@pytest.mark.parametrize("abi", COMPILERS)
def test_the_table(abi, tmp_path):
    compiler = COMPILERS[abi]
    if not compiler.exists():
        pytest.skip(f"no {compiler}")
    source, program = TESTS / "native/mpi_abi.cpp", tmp_path / "program"
    options = ["-std=c++17", f"-I{TESTS.parent / 'cpp'}", "-o", str(program), "-ldl"]
    subprocess.run([compiler, source, *options], check=True)
    lines = subprocess.run([program], stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert lines and lines[0].startswith(abi) and lines[1:] == []
