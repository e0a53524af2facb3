// What cuda_bench runs, one file a suite.
#pragma once

#include <vector>

#include "harness.h"
#include "report.h"

namespace longcat {

// All kernels at once: a small model on the GPU against the emulated device. Returns whether they agree.
bool check_parity(Bench& gpu, Bench& emulated);

// What must be equal bit for bit on a GPU of 9.0. Returns whether all of it is that could be run here.
bool check_bits(Bench& bench);

// Each op by itself, cold, beside its bound.
void bench_ops(Bench& bench, Report& report);

// The whole model with random weights, its tables in turn at each of `placements`: decode and prefill, and whether a
// replayed step has the bits of the eager one.
void bench_model(Bench& bench, Report& report, const std::vector<Placement>& placements);

// N-gram rows from device memory and from pinned host memory of both page sizes.
void bench_gather(Bench& bench, Report& report);

}  // namespace longcat
