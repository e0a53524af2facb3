// Ranks on GPUs.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "cuda/device/gpu_device.h"
#include "cuda/nccl/nccl_api.h"

namespace longcat {

// NCCL on the stream of `device`; the ranks find each other by `host`. max_bytes: of the largest sum. `api` and
// `device` outlive the communicator. Throws Error.
std::unique_ptr<Communicator> make_nccl_communicator(const NcclApi& api, std::unique_ptr<Communicator> host,
                                                     GpuDevice& device, int64_t max_bytes);

}  // namespace longcat
