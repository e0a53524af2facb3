#include "model/stored_values.h"

#include <cstring>

#include "base/error.h"
#include "ops/weight.h"

namespace longcat {

float element(const std::byte* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32: {
      float value;
      std::memcpy(&value, data + 4 * i, 4);
      return value;
    }
    case DType::bf16: {
      bf16 value;
      std::memcpy(&value, data + 2 * i, 2);
      return to_float(value);
    }
    case DType::f16: {
      uint16_t value;
      std::memcpy(&value, data + 2 * i, 2);
      return half_to_float(value);
    }
    default:
      throw Error(str_cat("[internal] ", name_of(dtype), " has no float elements here"));
  }
}

float stored_value(const StoredTensor& matrix, const StoredTensor* scales, int64_t row, int64_t col) {
  const int64_t cols = matrix.shape[1];
  if (matrix.dtype != DType::f8_e4m3) return element(matrix.data, matrix.dtype, row * cols + col);
  const int64_t blocks = (cols + kFp8Block - 1) / kFp8Block;
  return e4m3_to_float(static_cast<uint8_t>(matrix.data[row * cols + col])) *
         element(scales->data, DType::f32, row / kFp8Block * blocks + col / kFp8Block);
}

void read_stored_row(float* out, const Checkpoint& checkpoint, const std::string& name, int64_t row) {
  const StoredTensor* matrix = checkpoint.find(name);
  LC_CHECK(matrix && matrix->shape.size() == 2, name);
  const StoredTensor* scales = checkpoint.find(name + "_scale_inv");
  LC_CHECK(scales || matrix->dtype != DType::f8_e4m3, name);
  for (int64_t col = 0; col < matrix->shape[1]; ++col) out[col] = stored_value(*matrix, scales, row, col);
}

}  // namespace longcat
