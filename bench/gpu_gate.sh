#!/usr/bin/env bash
# Proves the CUDA backend on a machine with one GPU, in at most 420 seconds, the most important checks first.
#   bench/gpu_gate.sh [--only NAME[,NAME]] [--seconds N] [--check]
# Checks: ceilings, bits, parity, tests, gather, model, trace, ops, memcheck, racecheck.
# `--only` runs some of them, and `--seconds` is the time that they share.
# `--check` runs on the emulated device, which shows only that the script works.
# docs/cuda.md says what each check proves.
#
# The script runs in the folder that `make gpu-kit` makes. The machine needs no package registry. The variable PYTHON
# names the interpreter (python3).
#
# Each result is added at once to <device>-<date>.md in $OUT, or in bench/results, and all output to the .log file
# beside it. The exit code is the number of checks that failed.
set -euo pipefail
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }

# The seconds of each check. A check that hangs loses its own time and no other's.
declare -A seconds=([ceilings]=25 [bits]=15 [parity]=30 [tests]=75 [gather]=25 [model]=105 [trace]=50 [ops]=35 [memcheck]=30
  [racecheck]=30 [build]=200)
all=(ceilings bits parity tests gather model trace ops memcheck racecheck)

chosen=() total=0 emulated=()
while (($#)); do
  case $1 in
    --check) emulated=(--check) ;;
    --only) IFS=, read -ra chosen <<< "${2:-}"; shift ;;
    --seconds) total=${2:-}; shift
      [[ $total =~ ^[1-9][0-9]{0,5}$ ]] || usage ;;
    *) usage ;;
  esac
  shift || usage
done
# A rehearsal also tests whether the sources of the kit make a build.
((${#chosen[@]})) || chosen=("${all[@]}" ${emulated:+build})
shared=0
for name in "${chosen[@]}"; do
  test -n "${seconds[$name]:-}" || usage
  shared=$((shared + seconds[$name]))
done
((total)) || total=$shared

# The script is in the kit itself, or in a checkout that has made one.
root=$(cd "$(dirname "$0")/.." && pwd) kit=
for kit in "$root" "$root/build/gpu-kit" ""; do test ! -e "$kit/kit.txt" || break; done
test -n "$kit" || { echo "gpu_gate: $root has no kit.txt; run \`make gpu-kit\` first" >&2; exit 2; }
python=${PYTHON:-python3} bench=$kit/cuda_bench
test -e "$bench" || "$python" -W ignore -m tarfile -e "$kit/binaries.tar.xz" "$kit"
export PYTHONPATH=$kit/python PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
commit=$(sed -n 's/^commit //p' "$kit/kit.txt")

device=emulated driver=none
if ((!${#emulated[@]})); then
  device=$(timeout -k 5 20 nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1) || device=
  driver=${device##*, } device=${device%%,*}
fi
mkdir -p "${OUT:-$root/bench/results}"
results=$(cd "${OUT:-$root/bench/results}" && pwd)/$(tr -c 'A-Za-z0-9._\n' - <<< "${device:-unknown}")-$(date -u +%F).md
log=${results%.md}.log
cd "$kit"

write() { printf '%s\n' "$@" | tee -a "$results"; }
end=$total failed=0 rows=() running=''
figures=$(mktemp)
trap 'rm -f "$figures"; test -z "$running" || kill "$running" 2> /dev/null' EXIT
trap 'exit 130' INT TERM

# limited SECONDS COMMAND...: runs the command and returns its exit code; its output goes to the log. A process that the
# driver holds cannot be killed. It is left behind, because `wait` would never return.
limited() {
  local code=0
  timeout -k 5 "$@" >> "$log" 2>&1 &
  running=$!
  if timeout $(($1 + 8)) tail --pid="$running" -s 0.1 -f /dev/null; then
    wait "$running" || code=$?
  else
    code=124
  fi
  running=''
  return $code
}

report() {  # NAME RESULT SECONDS WORDS
  local words=${4//|/\/}
  rows+=("| $1 | $2 | $3 | ${words:0:150} |")
  write "" "## $1: $2, $3 s" "" "$4"
}

# Reads a check's output; prints its tables, each with the line before it.
tables() {
  awk '/^\|/ { if (!inside) print "\n" title "\n"; print; inside = 1; next } { inside = 0; title = $0 != "" ? $0 : title }'
}

# Reads a check's output; prints a row for each figure of its tables that has an expected one.
compare() {
  awk -F ' *[|] *' -v check="$1" '
    !/^\|/ { delete column; next }
    /^\| *-/ { next }
    !("" in column) { column[""]; for (i = 2; i < NF; ++i) column[$i] = i; next }
    "expected" in column {
      found = $column["found"]; expected = $column["expected"]; ratio = ""
      if (expected == "" || expected == "-") next
      if (found + 0 > 0 && expected + 0 > 0) ratio = sprintf("%.2f", found / expected)
      printf "| %s | %s | %s | %s | %s | %s |\n", check, $2, found, $column["unit"], expected, ratio
    }'
}

# check NAME COMMAND...: runs the command if the check was chosen. BUDGET in the command stands for a little less than
# the seconds of the check.
check() {
  local name=$1 begin=$SECONDS limit budget from code=0 result=ok words
  shift
  [[ " ${chosen[*]} " == *" $name "* ]] || return 0
  limit=$((seconds[$name] * total / shared))
  ((limit)) || limit=1
  ((limit <= end - SECONDS)) || limit=$((end - SECONDS))
  if ((limit < 1)); then
    failed=$((failed + 1))
    report "$name" "NOT RUN" 0 "no time was left"
    return
  fi
  budget=$((limit - limit / 8))
  ((!${#emulated[@]} || budget < 15)) || budget=15
  set -- "${@//BUDGET/$budget}"
  printf '\n===== %s, at most %d s: %s\n' "$name" "$limit" "$*" >> "$log"
  from=$(($(stat -c %s "$log") + 1))
  limited "$limit" "$@" || code=$?
  words=$(tail -c +"$from" "$log" | tr '\0' ' ' | grep -v '^[[:space:]]*$' | tail -n 1 || true)
  if ((code)) && tail -c +"$from" "$log" | grep -q 'Device not supported'; then
    report "$name" skipped $((SECONDS - begin)) "$1 does not run on this machine"
    return
  fi
  if ((code)); then
    failed=$((failed + 1)) result="FAILED ($code)"
    ((code <= 128)) || result="CRASHED (signal $((code - 128)))"
    ((SECONDS - begin < limit)) || result="CUT after $limit s"
  fi
  report "$name" "$result" $((SECONDS - begin)) "$words"
  tail -c +"$from" "$log" | tables >> "$results"
  if ((code)); then write '```' "$(tail -c +"$from" "$log" | tail -n 25)" '```'; fi
  tail -c +"$from" "$log" | compare "$name" >> "$figures"
}

# Without arguments a program that loads prints its usage and exits with 2.
loads() {
  local code=0
  timeout -k 5 20 "$bench" >> "$log" 2>&1 || code=$?
  ((code == 2)) && timeout -k 5 30 "$python" -c 'import longcat._core, longcat._testing' >> "$log" 2>&1
}

write "# ${device:-no GPU found}, driver $driver, $(date -u '+%F %H:%M') UTC, commit $commit"
if ! loads; then
  write "" "the kit's binaries do not load here: $(tail -n 1 "$log")"
  bench=$kit/built/cuda_bench PYTHONPATH=$kit/built/python
  if [ ! -x "$bench" ]; then
    begin=$SECONDS result=ok limit=$((seconds[build] < total ? seconds[build] : total))
    limited "$limit" bench/gpu_build.sh "$kit" built || result="FAILED ($?)"
    report build "$result" $((SECONDS - begin)) "$(tail -n 1 "$log")"
  fi
  if ! loads; then
    write '```' "$(tail -n 25 "$log")" '```' "no check can run"
    exit $((${#chosen[@]}))
  fi
fi

pytest=("$python" -m pytest -q -p no:cacheprovider -p pytest_timeout --timeout-method thread)
on_device=(env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1)
if ((${#emulated[@]})); then
  some="emulated and not f32" whole=bits workers=2 each=120 table_rows=500 sanitizer=()
else
  some="cuda and not emulated" whole=parity workers=8 each=20 table_rows=400000
  sanitizer=(compute-sanitizer --error-exitcode 9 --target-processes all)
  on_device+=(LONGCAT_GPU_MEMORY=0.05 LONGCAT_TESTS_NEED_GPU=1)
fi

check ceilings "${on_device[@]}" "$python" bench/scripts/ceilings.py "${emulated[@]}"
check bits "$bench" bits "${emulated[@]}"
check parity "$bench" parity "${emulated[@]}"
check tests "${on_device[@]}" "${pytest[@]}" --timeout $each -p xdist.plugin -n $workers --dist worksteal -k "$some"
check gather "$bench" gather --budget BUDGET --table-rows $table_rows "${emulated[@]}"
check model "$bench" model --budget BUDGET --tables both "${emulated[@]}"
check trace "$python" bench/scripts/trace.py "${emulated[@]}"
check ops "$bench" ops --budget BUDGET "${emulated[@]}"
check memcheck ${sanitizer:+"${sanitizer[@]}" --tool memcheck} "$bench" $whole "${emulated[@]}"
check racecheck "${on_device[@]}" ${sanitizer:+"${sanitizer[@]}" --tool racecheck} "${pytest[@]}" tests/ops/test_device*.py \
  -k "($some) and (test_norms or test_linear or test_moe or test_attention or token_logprobs)"
check build bench/gpu_build.sh "$kit" built -n

write "" "## ${device:-no GPU found}, driver $driver, $(date -u '+%F %H:%M') UTC, commit $commit" "" \
  "| check | figure | found | unit | expected | found/expected |" "| --- | --- | --- | --- | --- | --- |" "$(cat "$figures")" "" \
  "| check | result | s | last words |" "| --- | --- | --- | --- |" "${rows[@]}" "" \
  "$failed of ${#chosen[@]} checks failed; all output is in $(basename "$log")"
exit $((failed < 100 ? failed : 100))
