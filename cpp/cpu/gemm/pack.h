// Packs rows of floats into the formats of ops/packed.h.
#pragma once

#include <cstdint>
#include <functional>

#include "base/thread_pool.h"
#include "ops/weight.h"

namespace longcat::cpu {

// Writes the in_features values of a row; called from the threads of the pool.
using RowReader = std::function<void(int64_t row, float* values)>;

// int4 scales minimise the sum of squared errors; int8 scales map the largest magnitude to 127, fp8 scales to 448. The
// scales of blocks are bf16 numbers, also where they are stored as IEEE half. Throws Error when a value is not finite,
// or too large for a scale in half.
void pack(ThreadPool& pool, uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features,
          const RowReader& read_row);

// Writes the rows [8 * begin_group, 8 * end_group) of bf16_x8 from rows of bf16, whatever their values.
void pack_bf16(uint8_t* data, const Weight& rows, int64_t begin_group, int64_t end_group);

// The int4 scales that `pack` would choose, one per 32 values, for num_blocks blocks.
void search_int4_scales(float* scales, const float* values, int64_t num_blocks);

// Packs integers and the scales of 32 columns each, as they are. q: [out_features, in_features], in [-8, 7] for formats
// of 4 bits; scales: [out_features, ceil(in_features / 32)], the bits of IEEE halves or of bf16. Throws Error when a
// scale is not finite, std::invalid_argument when an integer is out of range or the format has no scales of blocks.
void pack_grid(ThreadPool& pool, uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features,
               const int8_t* q, const uint16_t* scales);

}  // namespace longcat::cpu
