"""Files that are derived from the source say what the source says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_SPEC = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
make_reference = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_reference)


@pytest.mark.parametrize("name", make_reference.FILES)
def test_derived_files_are_up_to_date(name):
    assert (ROOT / name).read_text(encoding="utf-8") == make_reference.FILES[name](), (
        f"{name} differs from the source; expected the same. Run: python docs/make_reference.py"
    )
