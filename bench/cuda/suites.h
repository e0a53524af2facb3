// The suites of cuda_bench, one file each.
#pragma once

#include <vector>

#include "harness.h"
#include "report.h"

namespace longcat {

// Compares a small model on the GPU with the emulated device, all kernels at once. Returns whether they agree.
bool check_parity(Bench& gpu, Bench& emulated);

// Checks what must be equal bit for bit on a GPU of 9.0. Returns whether every check that could run here passed.
bool check_bits(Bench& bench);

// Times each op by itself, cold, beside its bound.
void bench_ops(Bench& bench, Report& report);

// Measures decode and prefill of the whole model with random weights. Checks that a replayed step has the bits of the
// eager one. Does both with the tables at each of `placements` in turn.
void bench_model(Bench& bench, Report& report, const std::vector<Placement>& placements);

// Times the gather of N-gram rows from device memory, and from pinned host memory of both page sizes.
void bench_gather(Bench& bench, Report& report);

}  // namespace longcat
