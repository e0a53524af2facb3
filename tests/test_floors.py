"""The floors of the code: a file includes its own floor and those below it, and vendor headers stay in one folder."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = {"base": 0, "io": 1, "comm": 1, "ops": 2, "cpu": 3, "model": 4, "engine": 5, "bindings": 6}  # folders of cpp/
FLOOR = CORE | {"cuda": 3, "tests": 7, "bench": 7}  # tests: tests/native
FORBIDDEN = {
    # The core is linked with a backend and includes none.
    *((folder, "cuda") for folder in CORE),
    # The model is written over ops.h and never sees a backend.
    ("model", "cpu"),
    ("engine", "cpu"),
    ("ops", "io"),
    ("ops", "comm"),
}
VENDORS = {  # header prefix -> folders that may include it
    "pybind11/": {"bindings", "tests"},
    "nlohmann/": {"io"},
    "cuda": {"cuda", "bench"},
    "cutlass/": {"cuda"},
    "cute/": {"cuda"},
    "nccl": {"cuda"},
    "mpi.h": {"tests"},
    "Python.h": {"bindings"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]', re.MULTILINE)


def sources():
    """Every C++ and CUDA file, and the folder whose floor it is on."""
    for top in ("cpp", "cuda", "tests/native", "bench"):
        for path in sorted(ROOT.glob(f"{top}/**/*")):
            if path.suffix in {".h", ".cpp", ".cu", ".cuh"}:
                parts = path.relative_to(ROOT).parts
                yield path, parts[1] if top == "cpp" else parts[0]


def violations(path: Path, folder: str, text: str):
    for kind, header in INCLUDE.findall(text):
        other = header.split("/")[0]
        if kind == '"' and other in FLOOR:
            if FLOOR[other] > FLOOR[folder] or (FLOOR[other] == FLOOR[folder] and other != folder):
                yield f"{path}: {folder} includes {header}, a higher floor or one beside it"
            if (folder, other) in FORBIDDEN:
                yield f"{path}: {folder} includes {header}"
        # The emulated GPU is a library of its own, which the product does not link.
        if header.startswith("cuda/emulation/") and folder == "cuda" and path.parent.name != "emulation":
            yield f"{path}: includes {header}, which is for tests and benchmarks"
        for prefix, homes in VENDORS.items():
            if kind == "<" and header.startswith(prefix) and folder not in homes:
                yield f"{path}: <{header}> belongs to {sorted(homes) or 'nobody'}"


def test_includes_respect_the_floors():
    found = [v for path, folder in sources() for v in violations(path, folder, path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)
    assert {folder for _, folder in sources()} == set(FLOOR)


def test_the_check_sees_violations():
    text = (
        '#include "engine/engine.h"\n#include <pybind11/numpy.h>\n#include "cpu/cpu_ops.h"\n#include "base/error.h"\n'
    )
    assert len(list(violations(Path("x"), "model", text))) == 3


@pytest.mark.parametrize("folder", CORE)
def test_the_core_includes_no_backend_and_no_tests(folder):
    text = '#include "cuda/cuda_ops.h"\n#include "tests/native/native.h"\n'
    found = "\n".join(violations(Path("x"), folder, text))
    assert "cuda/cuda_ops.h" in found and "tests/native/native.h" in found


def test_the_product_does_not_include_the_emulation():
    text = '#include "cuda/emulation/emulated_device.h"\n'
    assert len(list(violations(Path("cuda/cuda_ops.cpp"), "cuda", text))) == 1
    assert not list(violations(Path("cuda/emulation/emulated_ops.cpp"), "cuda", text))
    assert not list(violations(Path("tests/native/devices.cpp"), "tests", text))


def test_core_has_no_backend_switch():
    """Backends are chosen when linking; no preprocessor branch on them in the core."""
    for path, folder in sources():
        if folder != "cuda":
            assert "LONGCAT_CUDA" not in path.read_text(encoding="utf-8"), path


# --- Python ---------------------------------------------------------------------------------------------------------

PACKAGE = ROOT / "python" / "longcat"
PYTHON_FLOOR = {
    "support": 0,
    "request": 1,
    "chat": 2,
    "checkpoint": 3,  # verify compiles the chat template
    "parallel": 3,
    "engine": 4,
    "planning": 5,
    "bench": 5,
    "server": 5,
    "cli": 6,
}
MOST_ENTRIES, MOST_LINES = 14, 2700


def python_imports(path: Path) -> list[str]:
    """Modules of the package that a file imports, at its top, inside functions or for types alone."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            is_folder = PACKAGE.parent.joinpath(*node.module.split(".")).is_dir()
            modules = [f"{node.module}.{name.name}" for name in node.names] if is_folder else []
            found += [module for module in modules if is_module(module)] or [node.module]
    return [name for name in found if name.split(".")[0] == "longcat"]


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists() or path.with_suffix(".pyi").exists()


def python_violations(room: str, imports: list[str]) -> list[str]:
    """What a file of `room` may not import: the package's own face, a room above, or one beside it."""
    found = []
    for name in imports:
        other = name.split(".")[1] if "." in name else ""
        if other == "_core" or other == room:
            continue
        if other not in PYTHON_FLOOR or PYTHON_FLOOR[other] >= PYTHON_FLOOR[room]:
            found.append(f"{room} imports {name}")
    return found


def test_python_rooms_import_downwards():
    found = []
    for room in PYTHON_FLOOR:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            found += [f"{path.relative_to(ROOT)}: {v}" for v in python_violations(room, python_imports(path))]
    assert not found, "\n".join(found)
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*PYTHON_FLOOR}


def test_python_rooms_are_small():
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__")]:
        entries = [path for path in folder.iterdir() if path.name != "__pycache__" and path.suffix != ".so"]
        assert len(entries) <= MOST_ENTRIES, folder
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py"))
        assert lines <= MOST_LINES, f"{folder}: {lines} lines"


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, if there is one."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def python_files() -> dict[str, set[str]]:
    """Each file's module, and the modules that it imports."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = set(python_imports(path))
    return files


def test_no_python_files_import_each_other():
    assert circle(python_files()) == []


def test_no_python_folders_import_each_other():
    """Folders side by side, such as server/api and server/http; a folder's own files stand between them."""
    folders = [path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"]
    names = {".".join(path.relative_to(PACKAGE.parent).parts) for path in folders}
    for parent in {name.rpartition(".")[0] for name in names}:
        beside = {name for name in names if name.rpartition(".")[0] == parent}
        arrows: dict[str, set[str]] = {name: set() for name in beside}
        for module, imports in python_files().items():
            home = folder_of(module, beside)
            if home is not None:
                arrows[home] |= {folder for used in imports if (folder := folder_of(used, beside - {home}))}
        assert circle(arrows) == []


def folder_of(module: str, folders: set[str]) -> str | None:
    return next((folder for folder in folders if f"{module}.".startswith(f"{folder}.")), None)


def test_the_circles_check_sees_a_circle():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"d"}}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_the_python_check_sees_violations():
    imports = ["longcat", "longcat.engine.engine", "longcat._core", "longcat.chat.reader", "longcat.request.prompts"]
    assert python_violations("chat", imports) == ["chat imports longcat", "chat imports longcat.engine.engine"]
