// A communicator for tensors in the memory of the ranks' devices.
#pragma once

#include <functional>
#include <memory>

#include "base/device.h"
#include "comm/communicator.h"

namespace longcat {

// Makes a communicator of the ranks of `host` for tensors of `device`. max_bytes: of the largest sum. Throws Error.
using CommunicatorFactory =
    std::function<std::unique_ptr<Communicator>(std::unique_ptr<Communicator> host, Device& device, int64_t max_bytes)>;

// The factory of this build. Returns `host` itself where the device's memory is host memory. For a GPU it returns NCCL
// on its stream, whose ranks find each other by `host`.
std::unique_ptr<Communicator> on_device(std::unique_ptr<Communicator> host, Device& device, int64_t max_bytes);

}  // namespace longcat
