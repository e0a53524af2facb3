#!/usr/bin/env bash
# Checks the machine code for sm_90a of the load-bound kernels:
#   cuda/check_sass.sh FILE...
# FILE: the module, or objects of cuda/kernels. Needs cuobjdump and nvdisasm (CUDA toolkit, or the PyPI packages
# nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
# Each listed kernel must have its 16-byte loads. No kernel may spill (LDL, STL: accesses to the stack) beyond what
# the list allows, or loop over a compare-and-swap.
set -euo pipefail
cuobjdump=${CUOBJDUMP:-cuobjdump}
command -v "$cuobjdump" > /dev/null || { echo "check_sass: cuobjdump is not found; put it on PATH" >&2; exit 1; }

sass=$(mktemp)
trap 'rm -f "$sass"' EXIT
for file in "$@"; do "$cuobjdump" -sass -arch sm_90a "$file"; done > "$sass"

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
expect SampleRow 0 4  # log() of the draw has a frame of 16 bytes
exit $failed
