#!/usr/bin/env bash
# Wheels for Linux with glibc 2.28 or later, of one architecture and several Pythons:
#   packaging/wheels.sh FOLDER ARCHITECTURE PYTHON...      (dist x86_64 3.10 3.11)
# The Makefile sets BUILD_VENV, which holds CMake, Ninja, zig and auditwheel, and CMAKE_DEFINE, options of CMake. A build
# folder serves all Pythons, so the core is compiled once, and the bindings once for each Python.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=$1 arch=$2
shift 2
root=$PWD
folder=$root/build/wheels/$arch
tools=$root/$BUILD_VENV/bin
mkdir -p "$folder/raw" "$wheels"

ZIG=$("$tools/python" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))')
json=$("$tools/python" -c 'import os, nlohmann_json; print(os.path.join(list(nlohmann_json.__path__)[0], "include"))')
export ZIG LONGCAT_ARCH=$arch PATH="$tools:$PATH"
export CMAKE_TOOLCHAIN_FILE=$root/packaging/zig/toolchain.cmake
export SKBUILD_BUILD_DIR=$folder/cmake
defines="LONGCAT_CUDA=OFF;LONGCAT_JSON_INCLUDE=$json;$CMAKE_DEFINE"
# A compiler cache sees a script: tell it the kind and version of the compiler behind it.
export CCACHE_COMPILERTYPE=clang CCACHE_COMPILERCHECK="string:zig $("$ZIG" version)"

# Moves a wheel to the result, with the tag of glibc 2.28. auditwheel knows the tags of this machine's architecture alone by
# name, but finds the lowest tag of each architecture. That must not be above 2.28.
finish() {
  rm -rf "$folder/repaired"
  auditwheel repair --only-plat --plat auto --wheel-dir "$folder/repaired" "$1" || return
  local repaired
  "$tools/python" -m zipfile --list "$1" | grep -F "longcat/_core$suffix" || return
  repaired=$(echo "$folder"/repaired/*.whl)
  [[ $repaired =~ manylinux_2_(1[0-9]|2[0-8])_[^.]*\.whl$ ]] || { echo "wheels: expected glibc 2.28 at most, found $repaired"; return 1; }
  wheel tags --remove --platform-tag "manylinux_2_28_$arch" "$repaired" && mv "$folder"/repaired/*.whl "$wheels"
}

for version in "$@"; do
  python=$(packaging/find_python.sh "$version")
  environment=$root/build/wheels/python-$version
  if [ ! -e "$environment/.installed" ]; then
    "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "scikit-build-core>=0.11" \
      "pybind11>=2.13"
    touch "$environment/.installed"
  fi
  tag=cp${version/./}
  echo "building the wheel of Python $version for $arch; log in build/wheels/$arch/$tag.log"
  rm -f "$folder"/raw/*-"$tag"-*.whl "$wheels"/*-"$tag"-*_"$arch".whl
  # They name the last Python. scikit-build-core would delete all objects where the second names another environment.
  rm -f "$SKBUILD_BUILD_DIR/CMakeCache.txt" "$SKBUILD_BUILD_DIR/.skbuild-info.json"
  suffix=.cpython-${version/./}-$arch-linux-gnu.so  # pybind11 would take that of the building Python
  SKBUILD_CMAKE_DEFINE="$defines;PYTHON_MODULE_EXTENSION=$suffix" \
    _PYTHON_HOST_PLATFORM=linux-$arch SETUPTOOLS_EXT_SUFFIX=$suffix \
    "$environment/bin/python" -c "import scikit_build_core.build as backend; backend.build_wheel('$folder/raw')" \
    > "$folder/$tag.log" 2>&1 || { tail -n 50 "$folder/$tag.log"; exit 1; }
  finish "$folder"/raw/*-"$tag"-*.whl >> "$folder/$tag.log" 2>&1 || { tail -n 50 "$folder/$tag.log"; exit 1; }
done
