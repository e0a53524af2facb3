// The register functions of the module, one for each file. module.cpp calls them.
#pragma once

#include "bindings/bindings.h"
#include "model/kv_cache.h"

namespace longcat {

void register_cpu_model(pybind11::module_& testing);
void register_cpu_ops(pybind11::module_& testing);
void register_cuda_host(pybind11::module_& testing);
void register_device_model(pybind11::module_& testing);
void register_device_ops(pybind11::module_& testing);
void register_draft_ops(pybind11::module_& testing);
void register_draft_policy(pybind11::module_& testing);
void register_gpu_emulator(pybind11::module_& testing);
void register_nccl(pybind11::module_& testing);
void register_packed_formats(pybind11::module_& testing);
void register_scheduler(pybind11::module_& testing);
void register_test_engine(pybind11::module_& testing);
void register_thread_communicators(pybind11::module_& testing);
void register_tiles(pybind11::module_& testing);
void register_values(pybind11::module_& testing);

// Fills the latents of the blocks [begin, end) with NaN.
void poison_blocks(const KvCache& cache, const ModelConfig& config, int64_t begin, int64_t end);

}  // namespace longcat
