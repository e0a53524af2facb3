"""bench/gpu_kit.sh on a checkout of small files: what the kit holds, and its limit."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
# Any programs do in place of ours, as long as they need a glibc.
ELF = Path("/bin/true")
TESTS = [
    "engine/test_device_engine.py",
    "engine/test_ngram_placement.py",
    "model/test_device_model.py",
    "model/test_fp8_device.py",
    "model/test_mtp.py",
    "ops/test_device_attention.py",
    "ops/test_device_embedding.py",
    "ops/test_device_linear.py",
    "ops/test_device_moe.py",
    "ops/test_device_sampling.py",
    "ops/test_devices.py",
    "ops/test_few_tokens.py",
    "ops/test_fp8_codes.py",
    "ops/test_sparse_devices.py",
]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("strip", "objdump", "git"))) or not ELF.exists(), reason="needs binutils and git"
)


@pytest.fixture
def kit(tmp_path):
    """Runs the script with a limit [MiB]: its exit code, its output and the folder."""
    root, programs = tmp_path / "root", tmp_path / "programs"
    for name in [
        "bench/gpu_kit.sh",
        "bench/gpu_gate.sh",
        "bench/gpu_build.sh",
        "bench/scripts/ceilings.py",
        "bench/scripts/trace.py",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    for name in [
        "CMakeLists.txt", "pyproject.toml", "cpp/a.cpp", "cuda/a.cu", "bench/cuda/a.cpp", "bench/native/a.cpp",
        "bench/lite_config.h.in", "python/longcat/checkpoint/configs/lite.json",
        "tests/native/a.cpp", "tests/conftest.py", "tests/ops/conftest.py", "tests/support/a.py",
        "tests/reference/a.py", "tests/engine/test_async.py", "tests/reference/test_a.py", "tests/data/mtp_a.npz",
        "third_party/cutlass/include/a.h", "third_party/cutlass/tools/util/include/a.h",
        *(f"tests/{name}" for name in TESTS),
    ]:  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    (root / "build/cuda").mkdir(parents=True)
    with zipfile.ZipFile(root / f"build/cuda/longcat_runtime-1-{TAG}-{TAG}-linux_x86_64.whl", "w") as wheel:
        wheel.writestr("longcat/__init__.py", "")
        for name in ("_core.so", "_testing.so", "longcat_mpi.openmpi.so"):
            wheel.write(ELF, f"longcat/{name}")
    (root / f"build/cuda-{TAG}-{TAG}-linux_x86_64").mkdir()
    shutil.copy(ELF, root / f"build/cuda-{TAG}-{TAG}-linux_x86_64/cuda_bench")
    for package, folder in [
        ("pybind11", "share/cmake/pybind11"),
        ("pybind11", "include"),
        ("nlohmann_json", "include"),
    ]:
        (programs / package / folder).mkdir(parents=True)
        (programs / package / folder / "a").write_text("")
        (programs / package / "__init__.py").write_text("")
    (programs / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    (programs / "nvcc").chmod(0o755)

    def run(limit=60):
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(programs), "KIT_MIB": str(limit)}
        command = [root / "bench/gpu_kit.sh", sys.executable, "build/gpu-kit"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, root / "build/gpu-kit"

    return run


def test_the_kit_holds_what_travels(kit):
    code, output, folder = kit()
    assert code == 0, output
    assert {path.name for path in folder.iterdir()} == {
        "bench", "binaries.tar.xz", "kit.txt", "pyproject.toml", "python", "source.tar.xz", "tests",
    }  # fmt: skip
    assert sorted(str(path.relative_to(folder / "tests")) for path in folder.rglob("test_*.py")) == TESTS
    for name in ("ops/conftest.py", "support/a.py", "reference/a.py", "data/mtp_a.npz"):
        assert (folder / "tests" / name).exists()
    assert [path.name for path in folder.glob("python/longcat/*")] == ["__init__.py"]
    with tarfile.open(folder / "binaries.tar.xz") as archive:
        assert archive.getnames() == ["cuda_bench", "python/longcat/_core.so", "python/longcat/_testing.so"]
    with tarfile.open(folder / "source.tar.xz") as archive:
        names = set(archive.getnames())
    assert {
        "./CMakeLists.txt", "./cpp/a.cpp", "./cuda/a.cu", "./bench/cuda/a.cpp", "./bench/native/a.cpp",
        "./bench/lite_config.h.in", "./python/longcat/checkpoint/configs/lite.json",
        "./tests/native/a.cpp", "./third_party/cutlass/include/a.h", "./third_party/cutlass/tools/util/include/a.h",
        "./third_party/json/a", "./third_party/pybind11/share/cmake/pybind11/a", "./third_party/pybind11/include/a",
    } <= names  # fmt: skip
    says = (folder / "kit.txt").read_text()
    assert "commit unknown\n" in says and "with nvcc 13.0; needs GLIBC_2." in says
    assert "gpu_kit: build/gpu-kit has 0 MiB of at most 60" in output
    assert ("no Python 3.12 here" in output) == (sys.version_info[:2] != (3, 12))


def test_a_kit_that_is_too_large_is_an_error(kit):
    code, output, _ = kit(limit=0)
    assert code == 1 and "too large for what travels" in output
