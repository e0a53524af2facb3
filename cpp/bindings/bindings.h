// One register function a file; module.cpp calls them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "model/kv_cache.h"

namespace longcat {

void register_checkpoint(pybind11::module_& module);
void register_engine(pybind11::module_& module);
void register_testing(pybind11::module_& module);
void register_testing_engine(pybind11::module_& testing);
void register_testing_scheduler(pybind11::module_& testing);

// Fills the latents of the blocks [begin, end) with NaN.
void poison_blocks(const KvCache& cache, const ModelConfig& config, int64_t begin, int64_t end);

}  // namespace longcat
