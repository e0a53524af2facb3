#!/usr/bin/env bash
# Builds the program and the modules from the sources of a kit (gpu_kit.sh), on the machine that will run them. It needs
# nvcc, CMake and Ninja.
#   bench/gpu_build.sh KIT FOLDER [-n]
# FOLDER gets cuda_bench and python/. With -n: prints what would be compiled.
set -euo pipefail
kit=$1 folder=$2 python=${PYTHON:-python3} jobs=$(nproc)
mkdir -p "$folder"
cd "$folder"
"$python" -m tarfile -e "$kit/source.tar.xz" .
cmake -S . -B build -G Ninja -DLONGCAT_CUDA=ON -DLONGCAT_BENCH=ON -DLONGCAT_TESTING=ON \
  -DLONGCAT_HEAVY_JOBS=$((jobs > 3 ? jobs - 2 : 1)) -DPython_EXECUTABLE="$(command -v "$python")" \
  -DSKBUILD_PROJECT_VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' "$kit/pyproject.toml")" \
  -Dpybind11_DIR="$PWD/third_party/pybind11/share/cmake/pybind11" -DLONGCAT_JSON_INCLUDE="$PWD/third_party/json"
cmake --build build --target cuda_bench _core _testing -- "${@:3}"
if (($# > 2)); then exit; fi
cp -r "$kit/python" .
rm -f python/longcat/_*.so
cp build/_core.*.so build/tests/native/_testing.*.so python/longcat/
cp build/cuda_bench .
