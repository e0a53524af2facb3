// The tensors a config promises, and whether a checkpoint keeps the promise.
#pragma once

#include <string>
#include <vector>

#include "io/model_config.h"
#include "io/safetensors.h"
#include "ops/weight.h"

namespace longcat {

// What a tensor is used as, and with that the packed formats it may have.
enum class TensorUse {
  values,  // read whole at load
  matrix,  // multiplied: the x8 formats
  table,   // of single rows: the row formats
};

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorUse use = TensorUse::values;
  bool is_linear = false;  // may be stored as fp8 with weight_scale_inv
};

// Whether a tensor may be stored in a packed format (ops/packed.h), and its name then.
bool may_be_packed(const ExpectedTensor& tensor, WeightFormat format);
std::string packed_name(const std::string& name, WeightFormat format);

// Every tensor of the text model, in the order of the forward pass.
std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config);

// Those of the MTP layer, which a checkpoint may have or not.
std::vector<ExpectedTensor> expected_mtp_tensors(const ModelConfig& config);
bool is_mtp_tensor(const std::string& name);

// Throws one Error that lists every missing or misshapen tensor; returns a warning about unknown ones, or nothing.
std::vector<std::string> check_tensors(const Checkpoint& checkpoint, const ModelConfig& config, bool with_mtp = false);

}  // namespace longcat
