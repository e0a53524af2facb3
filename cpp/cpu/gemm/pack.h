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

// Scales of int4, as `pack` searches them: one for each of num_blocks times 32 values.
void search_int4_scales(float* scales, const float* values, int64_t num_blocks);

// int4_x8 of values in [-8, 7] and the scales of each 32 of a row, which bf16 holds exactly: q [out_features,
// in_features], scales [out_features, ceil(in_features / 32)].
void pack_int4(uint8_t* data, int64_t out_features, int64_t in_features, const int8_t* q, const float* scales);

}  // namespace longcat::cpu
