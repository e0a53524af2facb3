// Makes devices by name: those of the product, and those that only tests have.
#pragma once

#include "engine/load_model.h"

namespace longcat {

// As make_ops, and:
//   cuda-emulated           the CUDA backend walked on the host, activations in bf16
//   cuda-emulated-f32       activations in f32: only the order of additions differs from the CPU
//   cuda-emulated-fp8       inputs rounded as on a GPU that multiplies fp8
//   cuda-emulated-reversed  blocks and threads walked backwards, in little scratch memory: no bit may change
//   cpu-padded              the CPU, with steps of decodes padded to powers of two
std::unique_ptr<Ops> make_test_ops(const std::string& device, int num_threads);

// Returns the ops and communicators of an engine with these options. Ranks on emulated devices exchange data by NCCL,
// or by its stand-in.
Backend make_test_backend(const EngineOptions& options, bool fake_nccl);

}  // namespace longcat
