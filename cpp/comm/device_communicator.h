// Ranks that exchange what lies in the memory of their devices.
#pragma once

#include <memory>

#include "base/device.h"
#include "comm/communicator.h"

namespace longcat {

struct NcclApi;

// A communicator of the same ranks for tensors of `device`: `host` itself where that is host memory, NCCL on the
// device's stream for a GPU, whose ranks find each other by `host`. max_bytes: of the largest sum. nccl: in place of
// the library, for tests. Throws Error.
std::unique_ptr<Communicator> on_device(std::unique_ptr<Communicator> host, Device& device, int64_t max_bytes,
                                        const NcclApi* nccl = nullptr);

}  // namespace longcat
