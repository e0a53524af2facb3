"""The counted steps: docs/cuda.md has the tables that the scripts print."""

import subprocess
import sys

import pytest

from support.documents import ROOT

CUT = ("--core", "int8", "--draft-vocab", "32768")
RTX5090 = ("--device", "rtx5090", "--experts", "int4", "--tokens", "1", "8", "64")
CASES = (
    [],
    ["--context", "131072", "--tokens", "1", "8", "64"],
    ["--model", "lite_sparse", "--context", "131072", "--tokens", "1", "8", "64"],
    ["--prefill", "--tokens", "512", "2048", "8192"],
    ["--core", "fp8", "--experts", "fp8"],
    [*RTX5090, "--core", "int8"],
    [*RTX5090, "--core", "int4"],
)


def printed(script, arguments):
    command = [sys.executable, str(ROOT / "bench" / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("arguments", CASES, ids=["short", "long", "sparse", "prefill", "fp8", "int8", "int4"])
def test_docs_have_what_the_script_prints(arguments):
    found = printed("gpu_step.py", arguments)
    assert found.count("\n") >= 5 and found in (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")


H200 = ("--context", "4608", "--core", "fp8", "--experts", "fp8")
DRAFT_CASES = ([*H200], [*H200, "--draft-vocab", "32768"], [*RTX5090[:4], "--core", "int8"], [*RTX5090[:4], *CUT])


@pytest.mark.parametrize("arguments", DRAFT_CASES, ids=["h200", "h200, cut", "rtx5090", "rtx5090, cut"])
def test_docs_have_the_steps_with_draft_tokens(arguments):
    found = printed("gpu_drafts.py", arguments)
    assert found.count("\n") == 4 and found in (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
