#!/usr/bin/env bash
# Fills FOLDER with everything that bench/gpu_gate.sh needs on a machine without a package registry. The machine has one
# GPU, nvcc, and a Python with numpy, pytest, pytest-xdist, pytest-timeout, hypothesis, tokenizers and jinja2.
#   bench/gpu_kit.sh PYTHON FOLDER
# PYTHON: the interpreter of the environment that built build/cuda (`make gpu-kit`). Prints the libraries that the
# binaries need, and the size. Fails above KIT_MIB, because little can be carried to such machines.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 kit=$2
limit=${KIT_MIB:-60}
tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
wheel=$(echo build/cuda/longcat_runtime-*-"$tag"-*.whl)
program=$(echo build/cuda-"$tag"-*/cuda_bench)

rm -rf "$kit"
mkdir -p "$kit/bench/scripts"
"$python" -m zipfile -e "$wheel" "$kit/python"
rm -f "$kit"/python/longcat/longcat_mpi.*.so  # of this machine's MPI
strip --strip-unneeded -o "$kit/cuda_bench" "$program"
strip --strip-unneeded "$kit"/python/longcat/_*.so
cp bench/gpu_gate.sh bench/gpu_build.sh "$kit/bench/"
cp bench/scripts/ceilings.py "$kit/bench/scripts/"
cp bench/scripts/trace.py "$kit/bench/scripts/"

# The tests that have a GPU among their devices. They need neither the server's packages nor a checkpoint.
tests=(tests/ops/test_device*.py tests/ops/test_few_tokens.py tests/ops/test_fp8_codes.py
  tests/ops/test_sparse_devices.py tests/model/test_fp8_device.py
  tests/model/test_device_model.py tests/model/test_mtp.py tests/engine/test_device_engine.py
  tests/engine/test_ngram_placement.py)
cp --parents "${tests[@]}" tests/conftest.py tests/ops/conftest.py tests/data/mtp_*.npz pyproject.toml "$kit"
find tests/support tests/reference -name '*.py' -not -name 'test_*' -exec cp --parents -t "$kit" {} +

# Sources and headers, in case the binaries do not load on that machine.
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
find CMakeLists.txt cpp cuda bench/cuda bench/lite_config.h.in bench/native python/longcat/checkpoint/configs tests/native -type f -exec cp --parents -t "$source" {} +
cp -r --parents third_party/cutlass/include third_party/cutlass/tools/util/include "$source"
headers='import os, nlohmann_json, pybind11; print(os.path.dirname(pybind11.__file__), *nlohmann_json.__path__)'
read -r pybind11 json < <("$python" -c "$headers")
mkdir -p "$source/third_party/pybind11"
cp -r "$pybind11/include" "$pybind11/share" "$source/third_party/pybind11/"
cp -r "$json/include" "$source/third_party/json"
tar -C "$source" -cJf "$kit/source.tar.xz" .

needs() { objdump -T "$kit/cuda_bench" "$kit"/python/longcat/_*.so | grep -o "$1_[0-9.]*" | sort -uV | tail -n 1; }
{
  echo "commit $(git describe --always --dirty --abbrev=12 2> /dev/null || echo unknown)"
  echo "built for $("$python" -c 'import platform; print("Python", platform.python_version())')"
  echo "built with nvcc $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'); needs $(needs GLIBC), $(needs GLIBCXX), $(needs CXXABI)"
} > "$kit/kit.txt"

# Each binary has the same kernels: together they take little more room than one. The dictionary spans them all.
(cd "$kit" && XZ_OPT=--lzma2=preset=6,dict=96MiB tar -cJf binaries.tar.xz cuda_bench python/longcat/_*.so &&
  rm cuda_bench python/longcat/_*.so)

if [ "$tag" != cp312 ]; then echo "gpu_kit: no Python 3.12 here; the kit is for $tag" >&2; fi
cat "$kit/kit.txt"
echo "tests: ${tests[*]}"
(cd "$kit" && du -sch --apparent-size binaries.tar.xz python tests source.tar.xz)
bytes=$(find "$kit" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
echo "gpu_kit: $kit has $((bytes >> 20)) MiB of at most $limit"
test $((bytes >> 20)) -lt "$limit" || { echo "gpu_kit: too large for what travels" >&2; exit 1; }
