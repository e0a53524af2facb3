"""Each mutation of tests/mutations.py still finds its text, and the tests that should notice it."""

import ast
from pathlib import Path

import mutations
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_texts_and_tests_exist(name):
    file, before, _, tests = mutations.MUTATIONS[name]
    count = (ROOT / file).read_text(encoding="utf-8").count(before)
    assert count == 1, f"{file} has {before!r} {count} times; expected once"
    for test in tests:
        path, _, function = test.partition("::")
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        assert function.partition("[")[0] in functions, f"{path} has no {function}"
