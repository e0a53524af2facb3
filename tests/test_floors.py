"""Who may include whom: a file sees its own floor and those below it, and vendor headers stay home."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOOR = {"base": 0, "io": 1, "comm": 1, "ops": 2, "cpu": 3, "cuda": 3, "model": 4, "engine": 5, "bindings": 6}
# Beside the order: the model is written over ops.h and never sees a backend.
FORBIDDEN = {
    ("model", "cpu"),
    ("model", "cuda"),
    ("engine", "cpu"),
    ("engine", "cuda"),
    ("ops", "io"),
    ("ops", "comm"),
}
VENDORS = {  # header prefix -> folders that may include it
    "pybind11/": {"bindings"},
    "nlohmann/": {"io"},
    "cuda": {"cuda"},
    "cutlass/": {"cuda"},
    "cute/": {"cuda"},
    "nccl": {"cuda"},
    "mpi.h": {"comm"},
    "Python.h": set(),
}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)


def sources():
    for path in sorted([*ROOT.glob("cpp/**/*"), *ROOT.glob("cuda/**/*")]):
        if path.suffix in {".h", ".cpp", ".cu", ".cuh"}:
            relative = path.relative_to(ROOT)
            yield path, relative.parts[1] if relative.parts[0] == "cpp" else "cuda"


def violations(path: Path, folder: str, text: str):
    for kind, header in INCLUDE.findall(text):
        other = header.split("/")[0]
        if kind == '"' and other in FLOOR:
            if FLOOR[other] > FLOOR[folder] or (FLOOR[other] == FLOOR[folder] and other != folder):
                yield f"{path}: {folder} includes {header}, a higher floor or one beside it"
            if (folder, other) in FORBIDDEN:
                yield f"{path}: {folder} includes {header}"
        for prefix, homes in VENDORS.items():
            if kind == "<" and header.startswith(prefix) and folder not in homes:
                yield f"{path}: <{header}> belongs to {sorted(homes) or 'nobody'}"


def test_includes_respect_the_floors():
    found = [v for path, folder in sources() for v in violations(path, folder, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)
    assert len(list(sources())) > 20


def test_the_check_sees_violations():
    text = (
        '#include "engine/engine.h"\n#include <pybind11/numpy.h>\n#include "cpu/cpu_ops.h"\n#include "base/error.h"\n'
    )
    assert len(list(violations(Path("x"), "model", text))) == 3


def test_core_has_no_backend_switch():
    """Backends are chosen when linking; no preprocessor branch on them in the core."""
    for path, folder in sources():
        if folder != "cuda":
            assert "LONGCAT_CUDA" not in path.read_text(encoding="utf-8"), path
