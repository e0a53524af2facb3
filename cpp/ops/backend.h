// Choice of the backend by name.
#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"

namespace longcat {

// device: "auto", "cpu", "cuda" or "cuda:N".
// num_threads: of the CPU backend, 0 = one per core this process may use. memory_share: of the memory a GPU has free,
// what is taken of it; 0: all but 1.5 GiB. num_communicators: whose buffers need room on the GPU beside that. Throws
// std::invalid_argument for an unknown name, Error when the backend is not built or finds no device.
std::unique_ptr<Ops> make_ops(const std::string& device, int num_threads, double memory_share = 0,
                              int num_communicators = 0);

// The two backends. The CUDA one is replaced at link time by no_cuda.cpp where it is not built.
std::unique_ptr<Ops> make_cpu_ops(int num_threads);
std::unique_ptr<Ops> make_cuda_ops(int device_idx, double memory_share, int num_communicators);
bool cuda_is_built();

}  // namespace longcat
