#!/usr/bin/env bash
# Proof on a machine with a GPU, in stages of at most eight minutes, each useful alone:
#   bench/gpu_gate.sh a    builds (or takes WHEEL=FILE), then every op and the model on the GPU against the CPU
#   bench/gpu_gate.sh c    compute-sanitizer: memcheck on the ops, racecheck on one shape of each
# Stage b (full shapes) is not written yet. Each stage prints one table and adds it to bench/results/<device>-<date>.md.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:-}
limit=480  # seconds
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr ' /' '--')
venv=.venv-gate
results=bench/results/$device-$(date -u +%F).md

install() {
  test -x $venv/bin/python || python3 -m venv $venv
  if [ -n "${WHEEL:-}" ]; then
    $venv/bin/python -m pip install --quiet "$WHEEL[test]"
  elif ! $venv/bin/python -c 'from longcat import _core; assert _core.cuda_is_built()' 2> /dev/null; then
    make third_party VENV=$venv
    SKBUILD_CMAKE_DEFINE=LONGCAT_CUDA=ON $venv/bin/python -m pip install --quiet ".[test]"
  fi
  # Without a GPU the tests would skip and the stage would be green for nothing.
  $venv/bin/python -c 'from longcat._core import testing; testing.DeviceOps("cuda")'
}

# run NAME COMMAND...: one row of the table; the log is kept.
export LONGCAT_GPU_MEMORY=${LONGCAT_GPU_MEMORY:-0.2}  # several devices may be open in one test run
failed=0
run() {
  local name=$1 log=build/gate-$stage-$1.log begin=$SECONDS status=ok
  shift
  timeout "$limit" "$@" > "$log" 2>&1 || { status="FAILED ($?)"; failed=1; tail -n 25 "$log"; }
  printf '| %s | %s | %d s | %s |\n' "$name" "$status" $((SECONDS - begin)) "$(tail -n 1 "$log" | tr '|' '/')" | tee -a "$results"
}

case $stage in a | c) ;; *) sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
mkdir -p build bench/results
install
printf '\n## Stage %s, %s, %s\n\n| check | status | time | last line |\n| --- | --- | --- | --- |\n' \
  "$stage" "$device" "$(git describe --always --dirty)" | tee -a "$results"
on_gpu=(-q -p no:cacheprovider -k "cuda and not emulated")
if [ "$stage" = a ]; then
  run ops $venv/bin/python -m pytest "${on_gpu[@]}" tests/ops/test_devices.py
  run model $venv/bin/python -m pytest "${on_gpu[@]}" tests/model/test_device_model.py
else
  run memcheck compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all \
    $venv/bin/python -m pytest "${on_gpu[@]}" tests/ops/test_devices.py
  run racecheck compute-sanitizer --tool racecheck --error-exitcode 9 --target-processes all \
    $venv/bin/python -m pytest -q -p no:cacheprovider tests/ops/test_devices.py \
    -k "cuda and not emulated and (test_norms or test_linear or test_moe or test_attention or many_rows or token_logprobs)"
fi
exit $failed
