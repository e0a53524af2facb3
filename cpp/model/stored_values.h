// Reads values of a checkpoint's tensors as floats, whatever their dtype and alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "io/safetensors.h"

namespace longcat {

// Returns element i of an f32, bf16 or f16 tensor.
float element(const std::byte* data, DType dtype, int64_t i);

// Returns one value of a matrix. scales: for an e4m3 matrix, one per block of 128 x 128 (`weight_scale_inv`).
float stored_value(const StoredTensor& matrix, const StoredTensor* scales, int64_t row, int64_t col);

// Reads row `row` of the matrix `name`.
void read_stored_row(float* out, const Checkpoint& checkpoint, const std::string& name, int64_t row);

}  // namespace longcat
