#!/usr/bin/env bash
# Checks the machine code for sm_90a of the load-bound and the tensor-core kernels:
#   cuda/check_sass.sh FILE...
# FILE: the module, or objects of cuda/kernels. Needs cuobjdump and nvdisasm (CUDA toolkit, or the PyPI packages
# nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
# Each listed kernel must have its 16-byte loads. No kernel may spill (LDL, STL: accesses to the stack) beyond what
# the list allows, or loop over a compare-and-swap.
set -euo pipefail
cuobjdump=${CUOBJDUMP:-cuobjdump}
command -v "$cuobjdump" > /dev/null || { echo "check_sass: cuobjdump is not found; put it on PATH" >&2; exit 1; }

sass=$(mktemp) usage=$(mktemp)
trap 'rm -f "$sass" "$usage"' EXIT
for file in "$@"; do "$cuobjdump" -sass -arch sm_90a "$file"; done > "$sass"
for file in "$@"; do "$cuobjdump" -res-usage -arch sm_90a "$file"; done > "$usage" 2>&1

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
# expect_tensor NAME HMMA LDSM COPIES REGISTERS: the kernel whose name contains NAME has so many HMMA and LDSM
# instructions, at least COPIES asynchronous copies, all of 16 bytes, and at most REGISTERS registers.
expect_tensor() {
  awk -v name="$1" -v hmma="$2" -v ldsm="$3" -v copies="$4" -v registers="$5" '
    /Function :/ { inside = index($0, name) > 0; found += inside }
    inside && /HMMA\.16816/ { products++ }
    inside && /LDSM/ { matrices++ }
    inside && /LDGSTS/ { copied++ }
    inside && /LDGSTS\.E.*\.128/ { wide++ }
    / Function / { counted = index($0, name) > 0 }
    counted && match($0, /REG:[0-9]+/) { used = substr($0, RSTART + 4, RLENGTH - 4); counted = 0 }
    END {
      printf "check_sass: %-28s %d HMMA, %d LDSM, %d copies, %d of 16 bytes, %d registers\n",
        name, products, matrices, copied, wide, used
      if (found != 1 || products != hmma || matrices != ldsm || wide < copies || wide != copied || !used || used > registers)
        exit 1
    }' "$sass" "$usage" && return
  echo "check_sass: expected $1 once with $2 HMMA, $3 LDSM, at least $4 copies, all of 16 bytes, $5 registers" >&2
  failed=1
}
expect RouteScoresINS_4bf16ELi2 30 0  # few tokens: a ring of 3 steps x (2 rows x 2 loads + 1), before the loop and in it
expect RouteScoresINS_4bf16ELi4 32 0  # many tokens: (4 rows x 2 loads + 8 tokens), before the loop and in it
expect NgramLookupINS_4bf16E 1 0
expect GatherWordsINS_4bf16E 1 0
expect RoutePicks 0 0
expect DecodePiece 0 0
# Per kernel: 68 HMMA for each 16 heads (36 of Q K^T, 32 of P V); tiles and queries by copies of 16 bytes; partial
# results by loads of 16 bytes. 256 threads may have 255 registers each.
expect_tensor MlaDecodeILNS_5DTypeE1ELi16E 68 47 18 255
expect_tensor MlaDecodeILNS_5DTypeE1ELi32E 136 60 18 255
expect_tensor MlaDecodeILNS_5DTypeE3ELi16E 68 47 18 255
expect_tensor MlaDecodeILNS_5DTypeE3ELi32E 136 60 18 255
expect MlaDecode 16 0
expect MlaPlan 0 0
expect SampleRow 0 4  # log() of the draw has a frame of 16 bytes
exit $failed
