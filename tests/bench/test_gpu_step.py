"""The counted step: docs/cuda.md has the tables that the script prints."""

import subprocess
import sys

import pytest

from support.documents import ROOT

RTX5090 = ("--device", "rtx5090", "--experts", "int4", "--tokens", "1", "8", "64")
CASES = (
    [],
    ["--context", "131072", "--tokens", "1", "8", "64"],
    ["--model", "lite_sparse", "--context", "131072", "--tokens", "1", "8", "64"],
    ["--prefill", "--tokens", "512", "2048", "8192"],
    [*RTX5090, "--core", "int8"],
    [*RTX5090, "--core", "int4"],
)


@pytest.mark.parametrize("arguments", CASES, ids=["short", "long", "sparse", "prefill", "int8", "int4"])
def test_docs_have_what_the_script_prints(arguments):
    command = [sys.executable, str(ROOT / "bench" / "scripts" / "gpu_step.py"), *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") >= 5 and printed in (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
