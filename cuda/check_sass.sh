#!/usr/bin/env bash
# Checks the machine code for sm_90a of the load-bound kernels:
#   cuda/check_sass.sh FILE...
# FILE: the module, or objects of cuda/kernels. Needs cuobjdump and nvdisasm (CUDA toolkit, or the PyPI packages
# nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
# Each listed kernel must have its 16-byte loads. No kernel may spill (LDL, STL: accesses to the stack) beyond what
# the list allows, or loop over a compare-and-swap. Those with a budget of registers keep to it.
set -euo pipefail
cuobjdump=${CUOBJDUMP:-cuobjdump}
command -v "$cuobjdump" > /dev/null || { echo "check_sass: cuobjdump is not found; put it on PATH" >&2; exit 1; }

sass=$(mktemp) resources=$(mktemp)
trap 'rm -f "$sass" "$resources"' EXIT
for file in "$@"; do
  "$cuobjdump" -sass -arch sm_90a "$file" >> "$sass"
  "$cuobjdump" -res-usage -arch sm_90a "$file" >> "$resources" 2>&1
done

failed=0
# expect NAME WIDE STACK: kernels whose name contains NAME have at least WIDE 16-byte loads and at most STACK accesses
# to the stack each.
expect() {
  awk -v name="$1" -v wide="$2" -v stack="$3" '
    /Function :/ { inside = index($0, name) > 0; found += inside }
    inside && /LDG\.E\.128/ { loads++ }
    inside && /(LDL|STL)[. ]/ { stacked++ }
    inside && /ATOMS\.(CAS|CAST)/ { swaps++ }
    END {
      printf "check_sass: %-28s %d kernels, %d loads of 16 bytes, %d stack accesses, %d compare-and-swaps\n",
        name, found, loads, stacked, swaps
      if (!found || loads < wide * found || stacked > stack * found || swaps) exit 1
    }' "$sass" && return
  echo "check_sass: expected $1 with at least $2 loads of 16 bytes, at most $3 stack accesses, no others" >&2
  failed=1
}
expect RouteScoresINS_4bf16ELi2 30 0  # few tokens: a ring of 3 steps x (2 rows x 2 loads + 1), before the loop and in it
expect RouteScoresINS_4bf16ELi4 32 0  # many tokens: (4 rows x 2 loads + 8 tokens), before the loop and in it
expect NgramLookupINS_4bf16E 1 0
expect GatherWordsINS_4bf16E 1 0
expect RoutePicks 0 0
expect DecodePiece 0 0
# expect_registers NAME MOST: kernels whose name contains NAME have at most MOST registers and no frame on the stack.
expect_registers() {
  awk -v name="$1" -v most="$2" '
    /Function / { inside = index($0, name) > 0; found += inside }
    inside && match($0, /REG:[0-9]+/) {
      registers = substr($0, RSTART + 4, RLENGTH - 4) + 0
      printf "check_sass: %-28s %d registers of %d\n", name, registers, most
      if (registers > most || !/STACK:0 /) failed = 1
    }
    END { exit !found || failed }' "$resources" && return
  echo "check_sass: expected $1 with at most $2 registers and no stack" >&2
  failed=1
}

# Three blocks of 256 threads a multiprocessor and more; kernels/sampler.h asserts their shared memory.
for kernel in SamplerScores SamplerBins SamplerDraws; do
  expect $kernel 0 0
  expect_registers $kernel 80
done
exit $failed
