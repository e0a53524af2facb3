"""Files that are derived from the source say what the source says."""

import ast
import importlib.util
from pathlib import Path

import longcat
import pytest
from longcat import _core

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
make_reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_reference)


@pytest.mark.parametrize("name", make_reference.FILES)
def test_derived_files_are_up_to_date(name):
    assert (ROOT / name).read_text(encoding="utf-8") == make_reference.FILES[name](), (
        f"{name} differs from the source; expected the same. Run: python docs/make_reference.py"
    )


@pytest.mark.parametrize("kind", [_core.EngineOptions, _core.SamplingParams])
def test_the_stub_lists_what_the_core_binds(kind):
    """_core.pyi is written by hand; the fields of these two are the keywords of callers."""
    tree = ast.parse((Path(longcat.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))
    [stub] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    fields = [node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)]
    methods = [node.name for node in stub.body if isinstance(node, ast.FunctionDef)]
    assert sorted(fields + methods) == sorted(name for name in vars(kind) if not name.startswith("_"))
