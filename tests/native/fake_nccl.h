// A stand-in for NCCL that moves bytes between emulated devices. Ranks are threads of one process.
#pragma once

#include <chrono>
#include <cstdint>

#include "cuda/nccl/nccl_api.h"

namespace longcat {

extern const NcclApi kFakeNccl;

// From now on calls of that rank fail, and calls of the other ranks wait for it; -1: none fails.
void fail_fake_nccl(int rank);
// Sets the time that a call takes before it waits for other ranks.
void set_fake_nccl_call_time(std::chrono::milliseconds time);

int64_t num_fake_nccl_aborts(int rank);
// Returns the number of calls on an ended communicator, and of ends of a communicator in use.
int64_t num_fake_nccl_misuses();

}  // namespace longcat
