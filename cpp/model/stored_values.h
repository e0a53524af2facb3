// Values of the tensors of a checkpoint as floats, whatever they are stored as and at whatever address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "io/safetensors.h"

namespace longcat {

// Element i of the data of an f32, bf16 or f16 tensor.
float element(const std::byte* data, DType dtype, int64_t i);

// Of a matrix. scales: of an e4m3 one, one a block of 128 x 128 (`weight_scale_inv`).
float stored_value(const StoredTensor& matrix, const StoredTensor* scales, int64_t row, int64_t col);

// Row `row` of a matrix by its name.
void read_stored_row(float* out, const Checkpoint& checkpoint, const std::string& name, int64_t row);

}  // namespace longcat
