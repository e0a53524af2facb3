// What cuda_bench runs, one file a suite.
#pragma once

#include "harness.h"

namespace longcat {

bool check_parity(Bench& gpu, Bench& emulated);
void bench_ops(Bench& bench);     // each op by itself: time, GB/s, TFLOP/s, share of the bound
bool bench_model(Bench& bench);   // the whole model with random weights; whether replay equals eager
void bench_gather(Bench& bench);  // N-gram rows from device memory and from pinned host memory of both page sizes

}  // namespace longcat
