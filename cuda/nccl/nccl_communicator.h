// Communicator of ranks on GPUs.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "cuda/device/gpu_device.h"
#include "cuda/nccl/nccl_api.h"

namespace longcat {

// NCCL on the stream of `device`; `host` carries the rendezvous. max_bytes: size of the largest all-reduce. `api` and
// `device` must outlive the communicator. Throws Error.
std::unique_ptr<Communicator> make_nccl_communicator(const NcclApi& api, std::unique_ptr<Communicator> host,
                                                     GpuDevice& device, int64_t max_bytes);

}  // namespace longcat
