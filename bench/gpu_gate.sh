#!/usr/bin/env bash
# Proof on a machine with a GPU, in stages of at most eight minutes, each useful alone:
#   bench/gpu_gate.sh a    every op, the model and the engine on the GPU, against the CPU and against themselves
#   bench/gpu_gate.sh b    a small model on the GPU against the emulation, then LongCat-Flash-Lite's shapes with random
#                          weights: table reads, memory, decode, prefill, each op
#   bench/gpu_gate.sh c    compute-sanitizer: memcheck on the ops, racecheck on some of them
#   bench/gpu_gate.sh d    the engine with its N-gram tables in host memory and on the device: tokens/s of one request, of
#                          sixteen, and of prompts, on 12 GB of random weights
# Each prints a table and adds it to bench/results/<device>-<date>.md.
#
# The package, built with LONGCAT_TESTING=ON, comes in this order from PYTHON=FILE (an interpreter that has it, with
# PYTHONPATH where needed), from WHEEL=FILE, or from a build here, which takes minutes and needs nvcc. Stage b runs BENCH=FILE and then needs no Python,
# or the cuda_bench that such a build left; TABLE_ROWS=N shortens the N-gram tables where the host has less than 80 GB for them.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:-}
case $stage in a | b | c | d) ;; *) sed -n '2,14s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '--')
results=bench/results/$device-$(date -u +%F).md
python=${PYTHON:-.venv-gate/bin/python}
mkdir -p build bench/results

install() {
  test -x $python || python3 -m venv .venv-gate
  if [ -n "${WHEEL:-}" ]; then
    $python -m pip install --quiet "$WHEEL[test]"
  else  # again each time, so that the table is of this commit: what has not changed is not compiled anew
    make third_party VENV=.venv-gate
    SKBUILD_CMAKE_DEFINE="LONGCAT_CUDA=ON;LONGCAT_BENCH=ON;LONGCAT_TESTING=ON" $python -m pip install --quiet ".[test]"
  fi
}
if [ "$stage" != b ] || [ -z "${BENCH:-}" ]; then
  if [ -z "${PYTHON:-}" ]; then install; fi
  # Without a GPU the tests would skip and the stage would be green for nothing.
  $python -c 'from longcat import _testing; _testing.DeviceOps("cuda")'
fi

# run NAME COMMAND...: one row of the table; the log is kept. The stage's time is shared by what is left of it.
end=$((SECONDS + 480)) failed=0
run() {
  local name=$1 log=build/gate-$stage-$1.log begin=$SECONDS status=ok
  shift
  timeout $((end > SECONDS ? end - SECONDS : 1)) "$@" > "$log" 2>&1 || { status="FAILED ($?)"; failed=1; tail -n 25 "$log"; }
  printf '| %s | %s | %d s | %s |\n' "$name" "$status" $((SECONDS - begin)) "$(tail -n 1 "$log" | tr '|' '/')" >> "$rows"
}
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT

test_on_gpu=($python -m pytest -q -p no:cacheprovider)
case $stage in
  a)
    run ops "${test_on_gpu[@]}" -k "cuda and not emulated" tests/ops/test_devices.py
    run model "${test_on_gpu[@]}" -k "cuda and not emulated" tests/model/test_device_model.py
    run engine "${test_on_gpu[@]}" -k "cuda and not emulated" tests/engine/test_device_engine.py
    ;;
  b)
    bench=${BENCH:-$(ls -t build/*/cuda_bench | head -n 1)}
    run parity "$bench" parity
    run gather "$bench" gather
    run model "$bench" model ${TABLE_ROWS:+--table-rows "$TABLE_ROWS"}
    run ops "$bench" ops
    ;;
  c)
    sanitizer=(compute-sanitizer --error-exitcode 9 --target-processes all)
    run memcheck "${sanitizer[@]}" --tool memcheck "${test_on_gpu[@]}" -k "cuda and not emulated" tests/ops/test_devices.py
    run racecheck "${sanitizer[@]}" --tool racecheck "${test_on_gpu[@]}" tests/ops/test_devices.py \
      -k "cuda and not emulated and (test_norms or test_linear or test_moe or test_attention or many_rows or token_logprobs)"
    ;;
  d)  # two layers: what the placement costs comes before the first
    model=build/gate-tables
    test -d $model || run checkpoint $python -m longcat make-checkpoint $model --preset lite --layers 2 \
      --set n_routed_experts=32 zero_expert_num=16 ngram_vocab_size_ratio=10
    for placement in host device; do
      bench=($python -m longcat bench throughput $model --device cuda --ngram-placement $placement)
      run one-request-$placement "${bench[@]}" --num-prompts 1 --input-len 16 --output-len 1024
      run sixteen-$placement "${bench[@]}" --num-prompts 16 --input-len 16 --output-len 1024
      run prompts-$placement "${bench[@]}" --num-prompts 128 --input-len 512 --output-len 1
    done
    ;;
esac

{
  printf '\n## Stage %s, %s, %s\n\n| check | status | time | last line |\n| --- | --- | --- | --- |\n' \
    "$stage" "$device" "$(git describe --always --dirty 2> /dev/null || echo 'no git')${PYTHON:+${BENCH:+}, built elsewhere}"
  cat "$rows"
  if [ "$stage" = b ]; then
    for name in parity gather model ops; do printf '\n### %s\n\n' $name; cat build/gate-b-$name.log; done
  fi
} | tee -a "$results"
exit $failed
