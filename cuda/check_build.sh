#!/usr/bin/env bash
# Checks a build with CUDA by its log and its module: cuda/check_build.sh LOG MODULE.
# No wgmma kernel may be serialised (ptxas C7510, C7508), and the module must load without the CUDA driver.
set -euo pipefail
log=$1 module=$2

test -s "$log" || { echo "check_build: $log is missing or empty" >&2; exit 1; }
if grep -nE 'C7510|C7508' "$log"; then
  echo "check_build: ptxas serialised a wgmma kernel" >&2
  exit 1
fi
symbols=$(nm -D --undefined-only "$module")  # read completely: under pipefail, a reader that stops early fails the pipe
test -n "$symbols" || { echo "check_build: nm shows no symbols of $module" >&2; exit 1; }
if grep -E ' cu[A-Z]' <<< "$symbols"; then
  echo "check_build: $module needs these symbols of the CUDA driver" >&2
  exit 1
fi
echo "check_build: no C7510 or C7508, no undefined cu[A-Z] symbol in $(basename "$module")"
