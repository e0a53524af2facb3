// A stand-in for NCCL that moves bytes between emulated devices. Ranks are threads of one process.
#pragma once

#include <chrono>
#include <cstdint>

#include "cuda/nccl/nccl_api.h"

namespace longcat {

extern const NcclApi kFakeNccl;

// From now on calls of that rank fail, and those of the others wait for it; -1: none.
void fail_fake_nccl(int rank);
// Of a call before it waits for others.
void set_fake_nccl_call_time(std::chrono::milliseconds time);

int64_t num_fake_nccl_aborts(int rank);
// Calls of a communicator that was ended, and ends of one that is used.
int64_t num_fake_nccl_misuses();

}  // namespace longcat
