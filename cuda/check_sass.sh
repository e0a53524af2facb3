#!/usr/bin/env bash
# Checks the machine code for sm_90a of the load-bound kernels and of those on tensor cores. Of that for sm_120, nothing
# may spill, and every kernel must wait.
#   cuda/check_sass.sh FILE...
# FILE: the module, or objects of cuda/kernels. Needs cuobjdump and nvdisasm (CUDA toolkit, or the PyPI packages
# nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
# Each listed kernel must have its 16-byte loads. No kernel may spill (LDL, STL: accesses to the stack) beyond what
# the list allows, or loop over a compare-and-swap. Kernels on tensor cores have exact counts, and a budget of registers.
set -euo pipefail
cuobjdump=${CUOBJDUMP:-cuobjdump}
command -v "$cuobjdump" > /dev/null || { echo "check_sass: cuobjdump is not found; put it on PATH" >&2; exit 1; }

sass=$(mktemp) resources=$(mktemp)
trap 'rm -f "$sass" "$resources"' EXIT
for file in "$@"; do "$cuobjdump" -sass -arch sm_90a "$file"; done > "$sass"
for file in "$@"; do "$cuobjdump" -res-usage -arch sm_90a "$file"; done > "$resources" 2>&1

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
# expect_waits NAME: kernels whose name contains NAME wait for the prior grid (ACQBULK): they may be launched before it
# ends.
expect_waits() {
  awk -v name="$1" '
    function check() { if (inside && !waits) { print "check_sass: does not wait: " kernel; missing = 1 } waits = 0 }
    /Function :/ { check(); kernel = $3; inside = index($0, name) > 0; found += inside }
    /ACQBULK/ { waits = 1 }
    END {
      check()
      printf "check_sass: %-28s %d kernels, each waits for the prior grid\n", name, found
      exit missing || !found
    }' "$sass" && return
  echo "check_sass: expected $1 to wait for the prior grid" >&2
  failed=1
}
expect_waits run_blocks                           # over Block
expect_waits run_threads                          # over simt.h
expect_waits MainloopSm90TmaGmmaWarpSpecialized   # CUTLASS's dense ones; grouped ones have Array in that name

expect RouteScoresINS_4bf16ELi2 30 0  # few tokens: a ring of 3 steps x (2 rows x 2 loads + 1), before the loop and in it
expect RouteScoresINS_4bf16ELi4 32 0  # many tokens: (4 rows x 2 loads + 8 tokens), before the loop and in it
expect NgramLookupINS_4bf16E 1 0
expect NgramLookupIv 0 0  # packed and unaligned rows
expect GatherWordsINS_4bf16E 1 0
expect RoutePicks 0 0
expect DecodePiece 0 0
# Rows of bf16 take one load of 16 bytes where those of f32 take two; each kernel has the loads of both.
expect 10AddRmsNormE 8 0
expect 18AddShortcutRmsNormE 14 0
expect 7AddRowsE 6 0
expect 7SiluMulE 6 0
expect 10GatherRowsE 3 0
expect 7CombineE 15 0
expect 4RopeE 3 0

# expect_gate_up TOKENS: the joined gate and up layer of tiles of that many tokens. It multiplies 2 x 4 times a step, in
# two places, and transposes two registers for 8 tokens. It does not spill.
expect_gate_up() {
  awk -v name="TwoMatricesILi$1E" -v turned="$(($1 / 4))" '
    /Function :/ { inside = index($0, name) > 0; found += inside }
    inside && /HGMMA/ { products++ }
    inside && /MOVM/ { moves++ }
    inside && /(LDL|STL)[. ]/ { stacked++ }
    END {
      printf "check_sass: gate and up, %d tokens: %d kernels, %d HGMMA, %d MOVM\n", turned * 4, found, products, moves
      if (found != 1 || products != 16 || moves != turned || stacked) exit 1
    }' "$sass" && return
  echo "check_sass: expected one kernel of gate and up for $1 tokens: 16 HGMMA, $(($1 / 4)) MOVM, no stack" >&2
  failed=1
}
for tokens in 16 64 128; do expect_gate_up "$tokens"; done

# expect_each NAME KERNELS HMMA LDSM COPIES REGISTERS [STACK]: that many kernels have NAME. Each has these counts of
# products, of loads of fragments, and of copies, all of 16 bytes; no more REGISTERS; no more accesses to the STACK (0).
expect_each() {
  awk -v name="$1" -v kernels="$2" -v hmma="$3" -v ldsm="$4" -v copies="$5" -v registers="$6" -v stack="${7:-0}" '
    function check() {
      if (inside && (h != hmma || l != ldsm || c != copies || narrow || stacked > stack)) {
        printf "check_sass: %s: %d HMMA, %d LDSM, %d copies of 16 bytes, %d others, %d stack accesses\n",
          kernel, h, l, c, narrow, stacked
        wrong = 1
      }
      h = l = c = narrow = stacked = 0
    }
    /Function :/ { check(); kernel = $3; inside = index($0, name) > 0; found += inside }
    /HMMA/ { h++ }
    /LDSM/ { l++ }
    /LDGSTS/ { if (/LDGSTS\.E\..*128/) c++; else narrow++ }
    /(LDL|STL)[. ]/ { stacked++ }
    FNR == 1 && NR > 1 { check(); inside = 0 }
    / Function / { used = index($0, name) > 0 }
    used && /REG:/ { split($0, parts, /REG:/); if (parts[2] + 0 > most) most = parts[2] + 0; counted++ }
    END {
      printf "check_sass: %-28s %d kernels, each %d HMMA, %d LDSM, %d copies of 16 bytes; at most %d registers\n",
        name, found, hmma, ldsm, copies, most
      if (wrong || found != kernels || counted != kernels || most > registers) exit 1
    }' "$sass" "$resources" && return
  echo "check_sass: expected $2 kernels $1 with $3 HMMA, $4 LDSM, $5 copies, at most $6 registers, ${7:-0} stack accesses" >&2
  failed=1
}
# Layers of few tokens: two plain ones, the router, the pair, gate and up, two of experts (cuda/gemm/few_tokens.cu).
expect_each FewTokenLinearILi8E 7 8 12 14 48
expect_each FewTokenLinearILi16E 7 8 12 16 48
expect_each FewTokenLinearILi32E 7 8 12 20 64
expect_each FewTokenLinearILi64E 7 16 16 24 80
expect_each RouterPicks 1 0 0 0 48
# Packed layers (cuda/gemm/packed.cu): plain ones of two results, the pair, gate and up, two of experts. Each 8 tokens
# take 8 HMMA a unit. A lane's fragments come by loads of 16 bytes, so there is no LDSM.
expect_each PackedLinearILi8ELi4E 6 8 0 24 96
expect_each PackedLinearILi16ELi4E 6 16 0 24 112
expect_each PackedLinearILi32ELi4E 6 32 0 40 160
expect_each PackedLinearILi8ELi8E 6 8 0 20 80
expect_each PackedLinearILi16ELi8E 6 16 0 28 112
expect_each PackedLinearILi32ELi8E 6 32 0 44 144
# fp8 layers (cuda/gemm/fp8_linear.cu): the same six; and two of many tokens.
expect_each Fp8LinearILi8E 6 8 0 32 64
expect_each Fp8LinearILi16E 6 16 0 36 80
expect_each Fp8LinearILi32E 6 32 0 40 96
expect_each 7Fp8Wide 2 64 0 24 176
# Per kernel: 68 HMMA for each 16 heads, 36 of Q K^T and 32 of P V. Tiles and queries come by copies of 16 bytes,
# partial results by loads of 16 bytes. 256 threads may have 255 registers each.
expect_each MlaDecodeILNS_5DTypeE1ELi16ELb0ELi64E 1 68 47 18 255
expect_each MlaDecodeILNS_5DTypeE1ELi32ELb0ELi64E 1 136 60 18 255
expect_each MlaDecodeILNS_5DTypeE3ELi16ELb0ELi64E 1 68 47 18 255
expect_each MlaDecodeILNS_5DTypeE3ELi32ELb0ELi64E 1 136 60 18 255
# Tiles of 32 positions have half the products.
expect_each MlaDecodeILNS_5DTypeE1ELi16ELb0ELi32E 1 34 28 18 255
expect_each MlaDecodeILNS_5DTypeE1ELi16ELb1ELi32E 1 34 28 27 255
# Over lists of positions (kernels/mla_rows.h), a thread copies 9 or 6 times 16 bytes of each of two rows.
expect_each MlaDecodeILNS_5DTypeE1ELi16ELb1ELi64E 1 68 47 45 255
expect_each MlaDecodeILNS_5DTypeE1ELi32ELb1ELi64E 1 136 60 45 255
expect_each MlaDecodeILNS_5DTypeE3ELi16ELb1ELi64E 1 68 47 33 255
expect_each MlaDecodeILNS_5DTypeE3ELi32ELb1ELi64E 1 136 60 33 255
# The scores of 8 positions: 8 products of the 16 heads, whose queries and keys come by 8 and 4 loads of fragments. 128
# registers let two blocks share a multiprocessor.
expect_each 11IndexScoresE 1 8 12 24 128
# Prefill. Keys and values: 64 products for a step of each. Attention: 32 for two of 12 steps of the scores, 128 of P V.
# The words that it spills are constants of the block.
expect_each MlaPrefillKeysILNS_5DTypeE1ELi128E 1 128 48 47 178
expect_each MlaPrefillKeysILNS_5DTypeE3ELi128E 1 128 48 42 178
expect_each MlaPrefillTilesILi256ELi64E 1 160 44 11 255 8
# For blocks of 99 KiB: half the positions, and half the rows.
expect_each MlaPrefillKeysILNS_5DTypeE1ELi64E 1 32 16 47 118
expect_each MlaPrefillKeysILNS_5DTypeE3ELi64E 1 32 16 42 118
expect_each MlaPrefillTilesILi128ELi32E 1 80 24 11 255
expect MlaDecode 16 0
expect MlaPlan 0 0

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

# Sums over peer memory: all blocks of a kernel are resident together. 72 registers let seven share a multiprocessor.
expect PeerSum 9 0
expect_registers PeerSum 72
# expect_system NAME KERNELS: that many kernels have NAME. Each has one fence and one store at system scope, and loads of
# the flag and of the word that stops it.
expect_system() {
  awk -v name="$1" -v kernels="$2" '
    /Function :/ { inside = index($0, name) > 0; found += inside }
    inside && /MEMBAR\.ALL\.SYS/ { fences++ }
    inside && /STG\.E\.STRONG\.SYS/ { stores++ }
    inside && /LDG\.E\.STRONG\.SYS/ { loads++ }
    END {
      printf "check_sass: %-28s %d kernels, %d fences, %d stores and %d loads at system scope\n",
        name, found, fences, stores, loads
      exit found != kernels || fences != found || stores != found || loads != 2 * found
    }' "$sass" && return
  echo "check_sass: expected $2 kernels $1 with a fence, a store and 2 loads at system scope each" >&2
  failed=1
}
expect_system PeerSum 3

# Three blocks of 256 threads a multiprocessor and more. kernels/sampler.h and select_positions.h assert their shared
# memory.
for kernel in SamplerScores SamplerBins SamplerDraws SelectionBins SelectionLists; do
  expect $kernel 0 0
  expect_registers $kernel 80
done

# On sm_120: the kernels over simt.h and over Block. The large tiles of prefill are not launched there.
for file in "$@"; do "$cuobjdump" -sass -arch sm_120 "$file"; done > "$sass"
expect_waits run_blocks
expect_waits run_threads
awk '
  /Function :/ { kernel = $3; inside = /run_threads/ && !/MlaPrefillTilesILi256E/; found += inside }
  inside && /(LDL|STL)[. ]/ && !seen[kernel]++ { print "check_sass: spills on sm_120: " kernel; spilled = 1 }
  END { printf "check_sass: sm_120: %d kernels do not spill\n", found; exit spilled || !found }' "$sass" || failed=1
exit $failed
