// Making packed weights (ops/packed.h) of rows of floats.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/weight.h"

namespace longcat::cpu {

// Writes the in_features values of a row; called from several threads.
using RowReader = std::function<void(int64_t row, float* values)>;

// The scales of int4 are searched for the least sum of squared errors; those of int8 put the largest value at 127.
// Throws Error at a value that is not finite.
void pack(uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features, const RowReader& read_row);

}  // namespace longcat::cpu
