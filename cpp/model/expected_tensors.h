// The tensors that a config requires, and a check of a checkpoint against them.
#pragma once

#include <string>
#include <vector>

#include "io/model_config.h"
#include "io/safetensors.h"
#include "ops/weight.h"

namespace longcat {

// The use of a tensor, which decides the packed formats it may have.
enum class TensorUse {
  values,  // read completely at load
  matrix,  // multiplied: may have the x8 formats
  table,   // read by single rows: may have the row formats
};

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorUse use = TensorUse::values;
  bool is_linear = false;  // may be stored as fp8 with weight_scale_inv
};

// Whether a tensor may be stored in a packed format (ops/packed.h), and its name in that format.
bool may_be_packed(const ExpectedTensor& tensor, WeightFormat format);
std::string packed_name(const std::string& name, WeightFormat format);

// All tensors of the text model, in the order of the forward pass.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

// The tensors of the MTP layer, which is optional in a checkpoint.
std::vector<ExpectedTensor> expected_mtp_tensors(const ModelConfig& config);
bool is_mtp_tensor(const std::string& name);

// Throws one Error that lists all missing or misshapen tensors. Returns a warning when there are unknown tensors.
std::vector<std::string> check_tensors(const Checkpoint& checkpoint, const ModelConfig& config, bool with_mtp = false);

}  // namespace longcat
