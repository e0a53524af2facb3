// Chooses a backend by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "ops/ops.h"

namespace longcat {

// Of a GPU's free memory, left to its context and to graphs [bytes].
constexpr int64_t kGpuSpareBytes = int64_t{3} << 29;

// What the CUDA backend keeps for itself, rounded up [bytes].
constexpr int64_t kGpuOpsBytes = int64_t{277} << 20;
// What the latent cache leaves free for buffers that are allocated after it [bytes].
constexpr int64_t kGpuStepBytes = int64_t{1} << 30;

// What device="auto" waits for: a run of bench/gpu_gate.sh on a card without a failed check. Its report's path from the
// root of the repository, such as "bench/results/nvidia-h200-2026-12-01.md". Empty: there is none, and "auto" is the
// CPU.
constexpr std::string_view kGpuProof = "";

// The device that "auto" names: "cuda" where there is a proof and a GPU, else "cpu".
std::string auto_device(std::string_view proof, bool has_gpu);
// `device`, or what "auto" names in this process.
std::string resolved_device(const std::string& device);

// device: "auto", "cpu", "cuda" or "cuda:N".
// num_threads: threads of the CPU backend; 0 means one per core this process may use. memory_share: fraction of the
// GPU's free memory to take; 0 means all but kGpuSpareBytes. num_communicators: number of NCCL communicators whose
// buffers stay outside that share. Throws std::invalid_argument for an unknown name, and Error when the backend is not
// built or finds no device.
std::unique_ptr<Ops> make_ops(const std::string& device, int num_threads, double memory_share = 0,
                              int num_communicators = 0);

// The two backends. Where CUDA is not built, no_cuda.cpp replaces the CUDA one at link time.
std::unique_ptr<Ops> make_cpu_ops(int num_threads);
std::unique_ptr<Ops> make_cuda_ops(int device_idx, double memory_share, int num_communicators);
bool cuda_is_built();
bool has_gpu();  // that the CUDA backend can use

}  // namespace longcat
