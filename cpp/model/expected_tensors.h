// The tensors a config promises, and whether a checkpoint keeps the promise.
#pragma once

#include <string>
#include <vector>

#include "io/model_config.h"
#include "io/safetensors.h"

namespace longcat {

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool is_linear = false;  // may be stored as fp8 with weight_scale_inv
};

// Every tensor of the text model, in the order of the forward pass (`model.mtp.*` is optional and not among them).
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

// Throws one Error that lists every missing or misshapen tensor; returns a warning about unknown ones, or nothing.
std::vector<std::string> check_tensors(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace longcat
