"""What token dispatch would save: docs/parallel.md has the table that the script prints."""

import importlib.util
import subprocess
import sys

import pytest

from support.documents import ROOT

SCRIPT = ROOT / "bench" / "scripts" / "token_dispatch.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("token_dispatch", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_docs_have_what_the_script_prints():
    printed = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True).stdout
    assert printed.count("\n") == 2 + 16 and printed in (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")


def test_rows_leave_a_group_once_for_each_rank(script):
    """One token: to the ranks of its experts, 8 of 12 picks being routed. One group of all ranks sends nothing."""
    assert script.dispatched(64, 8, 8) == script.Rows(0, 0)
    one = script.dispatched(1, 1, 64)
    assert 6.5 < one.here + one.far < 8 and one.far > 5 * one.here
    across = script.dispatched(1, 8, 64)
    assert across.here == 0 and across.far < one.here + one.far
    many = script.dispatched(4096, 1, 8)  # 64 of a rank's 512 rows at most stay at home
    assert many.far == 0 and 512 * 4.2 < many.here < 512 * 5


def test_a_sum_in_one_exchange_and_in_two(script):
    assert script.sum_bytes(8, 1000) == 7000 and script.sum_bytes(1, 1000) == 0
    assert script.sum_bytes(8, 1 << 20) == 2 * 7 / 8 * (1 << 20)
