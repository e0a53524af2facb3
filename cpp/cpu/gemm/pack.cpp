#include "cpu/gemm/pack.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/available_threads.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "cpu/gemm/scale_kernels.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

// The largest magnitude that stays finite in a format. That of integers and of fp8 is also that of their scale, which
// rounding makes larger.
constexpr float largest_of(WeightFormat format) {
  if (has_half_scales(format)) return 65504;
  return format == WeightFormat::bf16_x8 ? 0x1.fefffep127f : 0x1p127f;
}

// Rounds to the nearest integer, ties to even, as nearbyint does, but in vector instructions. |x| < 2^22.
float round_small(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 x 2^23: adding it leaves no bits for a fraction
  return (x + kRound) - kRound;
}

// The largest |x[k]| of finite values. Magnitudes are ordered as their bits, which vector instructions compare.
float largest_magnitude(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t k = 0; k < n; ++k) largest = std::max(largest, std::bit_cast<int32_t>(x[k]) & 0x7fffffff);
  return std::bit_cast<float>(largest);
}

// Quantises one row of a block of 32 to integers and a scale. Returns the scale's bits.
uint16_t quantize_block(int8_t* q, WeightFormat format, const float* x) {
  const float least = is_int4(format) ? -8.0f : -127.0f, most = is_int4(format) ? 7.0f : 127.0f;
  bf16 scale;
  if (is_int4(format)) {
    scale = kernels<ScaleKernels>().int4_block(x);
  } else {
    scale = to_bf16(largest_magnitude(x, kQuantBlock) / 127);
  }
  const uint16_t bits = has_half_scales(format) ? to_half(to_float(scale)) : scale.bits;
  const float s = scale_value(format, bits);
  for (int64_t k = 0; k < kQuantBlock; ++k)
    q[k] = s == 0 ? int8_t{0} : static_cast<int8_t>(round_small(std::clamp(x[k] / s, least, most)));
  return bits;
}

// Stores the 32 integers of row r in a group's block.
void put_block(uint8_t* values, WeightFormat format, int64_t r, const int8_t* q) {
  if (is_int8_x8(format)) {
    for (int64_t quad = 0; quad < 8; ++quad) std::memcpy(values + quad * 32 + r * 4, q + quad * 4, 4);
    return;
  }
  uint8_t bytes[kQuantBlock / 2];
  for (int64_t k = 0; k < kQuantBlock / 2; ++k)
    bytes[k] = static_cast<uint8_t>((q[k] + 8) | (q[k + kQuantBlock / 2] + 8) << 4);
  for (int64_t j = 0; j < 4; ++j) std::memcpy(values + j * 32 + r * 4, bytes + j * 4, 4);
}

// Stores the integers of a table's row.
void put_row(uint8_t* out, WeightFormat format, int64_t n, const int8_t* q) {
  if (!is_int4(format)) {
    std::memcpy(out, q, static_cast<size_t>(n));
    return;
  }
  for (int64_t k = 0; k < n; k += 2)
    out[k / 2] = static_cast<uint8_t>((q[k] + 8) | (k + 1 < n ? q[k + 1] + 8 : 8) << 4);
}

void pack_group(uint8_t* group, WeightFormat format, int64_t in_features, const std::vector<float>& rows) {
  const int64_t blocks = num_quant_blocks(in_features), width = blocks * kQuantBlock;
  if (format == WeightFormat::bf16_x8) {
    bf16* values = reinterpret_cast<bf16*>(group);
    for (int64_t k = 0; k < (in_features + 1) / 2 * 2; ++k)
      for (int64_t r = 0; r < kPackedRows; ++r)
        values[k / 2 * 16 + r * 2 + k % 2] = to_bf16(rows[static_cast<size_t>(r * width + k)]);
    return;
  }
  uint16_t* scales = reinterpret_cast<uint16_t*>(group + value_bytes_of_group(format, in_features));
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t r = 0; r < kPackedRows; ++r) {
      int8_t q[kQuantBlock];
      scales[b * kPackedRows + r] = quantize_block(q, format, rows.data() + r * width + b * kQuantBlock);
      put_block(group + b * block_value_bytes(format), format, r, q);
    }
}

// The integers of a row with one scale. Returns the scale.
float quantize_row(int8_t* q, WeightFormat format, int64_t n, const float* x, float largest) {
  const float most = is_int4(format) ? 7.0f : 127.0f;
  const float scale = is_int4(format) ? kernels<ScaleKernels>().int4_row(x, n, largest) : largest / most;
  for (int64_t k = 0; k < n; ++k)
    q[k] = scale == 0 ? int8_t{0} : static_cast<int8_t>(round_small(std::clamp(x[k] / scale, -most, most)));
  return scale;
}

// x has zeros up to a multiple of 32 values, and q room for as many.
void pack_table_row(uint8_t* out, int8_t* q, WeightFormat format, int64_t n, const float* x) {
  uint8_t* scales = out + value_bytes_of_row(format, n);
  if (is_b32(format)) {
    for (int64_t b = 0; b < num_quant_blocks(n); ++b) {
      const uint16_t bits = quantize_block(q + b * kQuantBlock, format, x + b * kQuantBlock);
      std::memcpy(scales + 2 * b, &bits, 2);
    }
    return put_row(out, format, n, q);
  }
  const float largest = largest_magnitude(x, n);
  float scale;
  if (format == WeightFormat::fp8_row) {
    scale = fp8_scale(largest);
    for (int64_t k = 0; k < n; ++k) out[k] = to_e4m3(x[k] / scale);
  } else {
    scale = quantize_row(q, format, n, x, largest);
    put_row(out, format, n, q);
  }
  std::memcpy(scales, &scale, 4);
}

// Stores row r of a group of pack_grid(). q and scales are null for a row behind the last.
void put_grid_row(uint8_t* group, WeightFormat format, int64_t r, int64_t n, const int8_t* q, const uint16_t* scales) {
  uint16_t* group_scales = reinterpret_cast<uint16_t*>(group + value_bytes_of_group(format, n));
  for (int64_t b = 0; b < num_quant_blocks(n); ++b) {
    int8_t block[kQuantBlock] = {};
    if (q) std::memcpy(block, q + b * kQuantBlock, static_cast<size_t>(std::min(kQuantBlock, n - b * kQuantBlock)));
    put_block(group + b * block_value_bytes(format), format, r, block);
    if (scales) group_scales[b * kPackedRows + r] = scales[b];
  }
}

// Throws when a row of pack_grid() cannot be stored.
void check_grid_row(WeightFormat format, int64_t row, int64_t n, const int8_t* q, const uint16_t* scales) {
  for (int64_t b = 0; b < num_quant_blocks(n); ++b)
    if (const float scale = scale_value(format, scales[b]); !std::isfinite(scale))
      throw Error(
          str_cat("row ", row, ": the scale of column ", b * kQuantBlock, " is ", scale, "; expected a finite value"));
  if (!is_int4(format)) return;
  int outside = 0;
  for (int64_t k = 0; k < n; ++k) outside |= (q[k] + 8) & ~15;
  for (int64_t k = 0; outside && k < n; ++k)
    if (q[k] < -8 || q[k] > 7)
      throw std::invalid_argument(str_cat("[packed] row ", row, ", column ", k, " is ", static_cast<int>(q[k]),
                                          "; expected -8 to 7 in ", name_of(format)));
}

}  // namespace

void pack(ThreadPool& pool, uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features,
          const RowReader& read_row) {
  const int64_t stride = packed_stride(format, in_features);
  const int64_t rows_at_once = is_x8(format) ? kPackedRows : 64;
  const int64_t width = num_quant_blocks(in_features) * kQuantBlock;
  const float most = largest_of(format);
  pool.parallel_for((out_features + rows_at_once - 1) / rows_at_once, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(static_cast<size_t>(rows_at_once * width));
    std::vector<int8_t> q(static_cast<size_t>(width));
    for (int64_t group = begin; group < end; ++group) {
      std::fill(rows.begin(), rows.end(), 0.0f);
      const int64_t first = group * rows_at_once, count = std::min(rows_at_once, out_features - first);
      for (int64_t r = 0; r < count; ++r) {
        float* row = rows.data() + r * width;
        read_row(first + r, row);
        int unsound = 0;
        for (int64_t k = 0; k < in_features; ++k) unsound |= !(std::abs(row[k]) <= most);
        for (int64_t k = 0; unsound && k < in_features; ++k)
          if (!(std::abs(row[k]) <= most))
            throw Error(str_cat("row ", first + r, ", column ", k, " is ", row[k], "; expected a finite value",
                                std::isfinite(row[k]) ? str_cat(" up to ", most) : ""));
      }
      if (is_x8(format)) {
        std::memset(data + group * stride, 0, static_cast<size_t>(stride));
        pack_group(data + group * stride, format, in_features, rows);
      } else {
        for (int64_t r = 0; r < count; ++r)
          pack_table_row(data + (first + r) * stride, q.data(), format, in_features, rows.data() + r * width);
      }
    }
  });
}

void pack_bf16(uint8_t* data, const Weight& rows, int64_t begin_group, int64_t end_group) {
  const int64_t n = rows.in_features, stride = packed_stride(WeightFormat::bf16_x8, n);
  for (int64_t g = begin_group; g < end_group; ++g) {
    bf16* group = reinterpret_cast<bf16*>(data + g * stride);
    std::memset(group, 0, static_cast<size_t>(stride));
    for (int64_t r = 0; r < std::min(kPackedRows, rows.out_features - g * kPackedRows); ++r) {
      const bf16* row = static_cast<const bf16*>(rows.data) + (g * kPackedRows + r) * n;
      for (int64_t k = 0; k < n; ++k) group[k / 2 * 16 + r * 2 + k % 2] = row[k];
    }
  }
}

void search_int4_scales(float* scales, const float* values, int64_t num_blocks) {
  const ScaleKernels& search = kernels<ScaleKernels>();
  ThreadPool pool(available_threads());
  pool.parallel_for(num_blocks, 64, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) scales[b] = to_float(search.int4_block(values + b * kQuantBlock));
  });
}

void pack_grid(ThreadPool& pool, uint8_t* data, WeightFormat format, int64_t out_features, int64_t in_features,
               const int8_t* q, const uint16_t* scales) {
  if (!is_int_x8(format) && !is_b32(format))
    throw std::invalid_argument(str_cat("[packed] ", name_of(format), " has no scales of blocks; expected int8_x8, ",
                                        "int4_x8, int8_x8_f16, int4_x8_f16, int8_b32 or int4_b32"));
  const int64_t n = in_features, stride = packed_stride(format, n), blocks = num_quant_blocks(n);
  const int64_t rows_at_once = is_x8(format) ? kPackedRows : 1;
  pool.parallel_for(
      (out_features + rows_at_once - 1) / rows_at_once, 64 / rows_at_once, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
          uint8_t* out = data + unit * stride;
          std::memset(out, 0, static_cast<size_t>(stride));
          for (int64_t r = 0; r < rows_at_once; ++r) {
            const int64_t row = unit * rows_at_once + r;
            const bool is_there = row < out_features;
            if (is_there) check_grid_row(format, row, n, q + row * n, scales + row * blocks);
            if (is_x8(format)) {
              put_grid_row(out, format, r, n, is_there ? q + row * n : nullptr,
                           is_there ? scales + row * blocks : nullptr);
            } else {
              put_row(out, format, n, q + row * n);
              std::memcpy(out + value_bytes_of_row(format, n), scales + row * blocks, static_cast<size_t>(2 * blocks));
            }
          }
        }
      });
}

}  // namespace longcat::cpu
