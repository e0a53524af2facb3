// Making packed weights (ops/packed.h) of rows of floats.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/weight.h"

namespace longcat::cpu {

// Writes the in_features values of a row; called from several threads.
using RowReader = std::function<void(int64_t row, float* values)>;

// `column_importance` [in_features], or null for all alike: how much the square of an error in a column counts. The
// scales of int4 are searched for the least such sum; those of int8 put the largest value at 127.
void pack(uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features, const RowReader& read_row,
          const float* column_importance = nullptr);

}  // namespace longcat::cpu
