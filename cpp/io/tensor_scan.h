// Searches a tensor for signs of damage: a NaN, an infinity, or nothing but zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace longcat {

struct TensorScan {
  int64_t first_non_finite = -1;  // index of the first NaN or infinity, -1 when there is none
  bool is_nan = false;            // whether that element is a NaN
  bool all_zero = true;           // every byte is zero; a large such block is a hole that a download left
};

// `bytes` holds whole elements of `dtype`, at any alignment. Integers are always finite.
TensorScan scan_tensor(std::span<const std::byte> bytes, DType dtype);

}  // namespace longcat
