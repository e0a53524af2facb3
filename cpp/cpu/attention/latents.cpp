#include "cpu/attention/latents.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cpu/attention/bf16_kernels.h"
#include "cpu/attention/latent_kernels.h"
#include "cpu/row_kernels.h"
#include "ops/weight.h"

namespace longcat::cpu {

namespace {

void pack_fp8(uint8_t* row, const float* values, Fp8Latent layout) {
  for (int64_t g = 0; g < layout.num_groups(); ++g) {
    const int64_t begin = g * Fp8Latent::kGroup, end = std::min(begin + Fp8Latent::kGroup, layout.kv_lora_rank);
    float largest = 0;
    for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::abs(values[k]));
    const float scale = fp8_scale(largest);
    for (int64_t k = begin; k < end; ++k) row[k] = to_e4m3(values[k] / scale);
    std::memcpy(row + layout.scales_offset() + 4 * g, &scale, 4);
  }
  for (int64_t k = 0; k < layout.rope_dim; ++k) {
    const bf16 value = to_bf16(values[layout.kv_lora_rank + k]);
    std::memcpy(row + layout.rope_offset() + 2 * k, &value, 2);
  }
}

void unpack_fp8(float* values, const uint8_t* row, Fp8Latent layout) {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> all;
    for (int code = 0; code < 256; ++code) all[static_cast<size_t>(code)] = e4m3_to_float(static_cast<uint8_t>(code));
    return all;
  }();
  for (int64_t g = 0; g < layout.num_groups(); ++g) {
    const int64_t begin = g * Fp8Latent::kGroup, end = std::min(begin + Fp8Latent::kGroup, layout.kv_lora_rank);
    float scale;
    std::memcpy(&scale, row + layout.scales_offset() + 4 * g, 4);
    for (int64_t k = begin; k < end; ++k) values[k] = table[row[k]] * scale;
  }
  for (int64_t k = 0; k < layout.rope_dim; ++k) {
    bf16 value;
    std::memcpy(&value, row + layout.rope_offset() + 2 * k, 2);
    values[layout.kv_lora_rank + k] = to_float(value);
  }
}

}  // namespace

void store_latent(Tensor latents, const int32_t* block_table, int64_t position, const float* values,
                  int64_t kv_lora_rank, int64_t rope_dim) {
  switch (latents.dtype()) {
    case DType::f8_e4m3:
      return pack_fp8(latent_row<uint8_t>(latents, block_table, position), values, {kv_lora_rank, rope_dim});
    case DType::i8:
      return kernels<LatentKernels>().pack_int8(latent_row<uint8_t>(latents, block_table, position), values,
                                                {kv_lora_rank, rope_dim});
    case DType::bf16: {
      bf16* row = latent_row<bf16>(latents, block_table, position);
      for (int64_t k = 0; k < kv_lora_rank + rope_dim; ++k) row[k] = to_bf16(values[k]);
      return;
    }
    default:
      std::copy_n(values, kv_lora_rank + rope_dim, latent_row<float>(latents, block_table, position));
  }
}

const float* read_latents(float* scratch, Tensor latents, const int32_t* block_table, int64_t begin, int64_t end,
                          int64_t kv_lora_rank, int64_t rope_dim) {
  const int64_t dim = kv_lora_rank + rope_dim;
  switch (latents.dtype()) {
    case DType::f8_e4m3:
      for (int64_t s = begin; s < end; ++s)
        unpack_fp8(scratch + (s - begin) * dim, latent_row<uint8_t>(latents, block_table, s), {kv_lora_rank, rope_dim});
      return scratch;
    case DType::i8:
      for (int64_t s = begin; s < end; ++s)
        kernels<LatentKernels>().unpack_int8(scratch + (s - begin) * dim, latent_row<uint8_t>(latents, block_table, s),
                                             {kv_lora_rank, rope_dim});
      return scratch;
    case DType::bf16:
      kernels<RowKernels>().widen_bf16(scratch, latent_row<bf16>(latents, block_table, begin), (end - begin) * dim);
      return scratch;
    default:
      return latent_row<float>(latents, block_table, begin);
  }
}

// --- floats ----------------------------------------------------------------------------------------------------------

void FloatTile::prepare_queries(float* prepared, const LatentQueries& queries, const LatentShape& shape, float scale) {
  const int64_t lanes = shape.lanes();
  std::fill_n(prepared, queries_size(shape), 0.0f);
  const auto transpose = [&](float* out, const float* q, int64_t stride, int64_t n) {
    constexpr int64_t kAtOnce = 16;  // lines of `out` that stay in the cache during the loop over heads
    for (int64_t begin = 0; begin < n; begin += kAtOnce)
      for (int64_t h = 0; h < shape.num_heads; ++h)
        for (int64_t k = begin; k < std::min(begin + kAtOnce, n); ++k) out[k * lanes + h] = q[h * stride + k] * scale;
  };
  transpose(prepared, queries.latent, queries.latent_stride, shape.kv_lora_rank);
  transpose(prepared + shape.kv_lora_rank * lanes, queries.rope, queries.rope_stride, shape.rope_dim);
}

namespace {

// Number of values after a row's end that accumulate() reads.
int64_t values_beyond(const LatentShape& shape) {
  return std::max<int64_t>(0, padded_columns(shape.kv_lora_rank) - shape.dim());
}

// Prefetches the stored row of a position that is gathered soon.
void prefetch_row(Tensor latents, const int32_t* block_table, int64_t position) {
  const int64_t row_bytes = latents.size(2) * size_of(latents.dtype());
  const char* row = static_cast<const char*>(latents.index(0, block_table[position / kBlockSize]).raw()) +
                    position % kBlockSize * row_bytes;
  for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
}

constexpr int64_t kRowsAhead = 8;  // between the prefetch of a scattered row and its use

}  // namespace

void FloatTile::load(Tensor latents, const int32_t* block_table, int64_t begin, int64_t end, const LatentShape& shape) {
  const int64_t beyond = values_beyond(shape);
  scratch_.resize(static_cast<size_t>(kBlockSize * shape.dim() + beyond));
  rows_ = read_latents(scratch_.data(), latents, block_table, begin, end, shape.kv_lora_rank, shape.rope_dim);
  num_rows_ = end - begin;
  if (beyond > 0 && rows_ != scratch_.data())
    rows_ = std::copy_n(rows_, num_rows_ * shape.dim(), scratch_.data()) - num_rows_ * shape.dim();
}

void FloatTile::gather(Tensor latents, const int32_t* block_table, const int32_t* positions, int64_t num_rows,
                       const LatentShape& shape) {
  scratch_.resize(static_cast<size_t>(kBlockSize * shape.dim() + values_beyond(shape)));
  rows_ = scratch_.data();
  num_rows_ = num_rows;
  int64_t prefetched = 0;
  for (int64_t i = 0, end; i < num_rows; i = end) {
    // Adjacent positions of a block are read at once; the last local_tokens of a selection are such runs.
    for (end = i + 1; end < num_rows && positions[end] == positions[end - 1] + 1 && positions[end] % kBlockSize != 0;)
      ++end;
    for (; prefetched < std::min(end + kRowsAhead, num_rows); ++prefetched)
      prefetch_row(latents, block_table, positions[prefetched]);
    float* const out = scratch_.data() + i * shape.dim();
    const float* const rows = read_latents(out, latents, block_table, positions[i], positions[i] + end - i,
                                           shape.kv_lora_rank, shape.rope_dim);
    if (rows != out) std::copy_n(rows, (end - i) * shape.dim(), out);
  }
}

void FloatTile::score(float* scores, const float* prepared, const LatentShape& shape, Prefetch& next) const {
  std::fill_n(scores, num_rows_ * shape.lanes(), 0.0f);
  multiply_add({.c = scores,
                .c_row = shape.lanes(),
                .a = rows_,
                .a_row = shape.dim(),
                .a_column = 1,
                .b = prepared,
                .b_row = shape.lanes(),
                .rows = num_rows_,
                .columns = shape.lanes(),
                .depth = shape.dim(),
                .beside = &next});
}

void FloatTile::accumulate(float* acc, const float* weights, const LatentShape& shape, Prefetch& next) {
  multiply_add({.c = acc,
                .c_row = shape.acc_columns(),
                .a = weights,
                .a_row = 1,
                .a_column = shape.lanes(),
                .b = rows_,
                .b_row = shape.dim(),
                .rows = shape.num_heads,
                .columns = padded_columns(shape.kv_lora_rank),
                .depth = num_rows_,
                .beside = &next});
}

// --- bf16 ------------------------------------------------------------------------------------------------------------

namespace {

const Bf16Pair* pairs_of(const bf16* values) { return reinterpret_cast<const Bf16Pair*>(values); }

}  // namespace

bool Bf16Tile::fits(Tensor latents, const LatentShape& shape) {
  return latents.dtype() == DType::bf16 && shape.dim() % 2 == 0 && kernels<ProductKernels>().bf16s;
}

void Bf16Tile::prepare_queries(float* prepared, const LatentQueries& queries, const LatentShape& shape, float scale) {
  const int64_t lanes = shape.lanes();
  thread_local std::vector<float> columns;  // grows once: FloatTile's queries
  columns.resize(static_cast<size_t>(FloatTile::queries_size(shape)));
  FloatTile::prepare_queries(columns.data(), queries, shape, scale);
  Bf16Pair* const out = reinterpret_cast<Bf16Pair*>(prepared);
  for (int64_t k = 0; k < shape.dim(); k += 2)
    kernels<Bf16Kernels>().pair_floats(out + k / 2 * lanes, columns.data() + k * lanes,
                                       columns.data() + (k + 1) * lanes, lanes);
}

void Bf16Tile::load(Tensor latents, const int32_t* block_table, int64_t begin, int64_t end, const LatentShape&) {
  rows_ = latent_row<bf16>(latents, block_table, begin);
  num_rows_ = end - begin;
}

void Bf16Tile::gather(Tensor latents, const int32_t* block_table, const int32_t* positions, int64_t num_rows,
                      const LatentShape& shape) {
  gathered_.resize(static_cast<size_t>(kBlockSize * shape.dim()));
  rows_ = gathered_.data();
  num_rows_ = num_rows;
  for (int64_t s = 0; s < std::min(kRowsAhead, num_rows); ++s) prefetch_row(latents, block_table, positions[s]);
  for (int64_t s = 0; s < num_rows; ++s) {
    if (s + kRowsAhead < num_rows) prefetch_row(latents, block_table, positions[s + kRowsAhead]);
    std::copy_n(latent_row<bf16>(latents, block_table, positions[s]), shape.dim(), gathered_.data() + s * shape.dim());
  }
}

void Bf16Tile::score(float* scores, const float* prepared, const LatentShape& shape, Prefetch& next) const {
  std::fill_n(scores, num_rows_ * shape.lanes(), 0.0f);
  multiply_add({.c = scores,
                .c_row = shape.lanes(),
                .a = pairs_of(rows_),
                .a_row = shape.dim() / 2,
                .a_column = 1,
                .b = reinterpret_cast<const Bf16Pair*>(prepared),
                .b_row = shape.lanes(),
                .rows = num_rows_,
                .columns = shape.lanes(),
                .depth = shape.dim() / 2,
                .beside = &next});
}

void Bf16Tile::accumulate(float* acc, const float* weights, const LatentShape& shape, Prefetch& next) {
  const Bf16Kernels& pair = kernels<Bf16Kernels>();
  const int64_t lanes = shape.lanes(), columns = shape.acc_columns();
  values_.resize(static_cast<size_t>(kBlockSize / 2 * columns));
  weights_.resize(static_cast<size_t>(kBlockSize / 2 * lanes));
  for (int64_t s = 0; s < num_rows_; s += 2) {
    const bool is_last = s + 1 == num_rows_;
    const bf16* const row = rows_ + s * shape.dim();
    pair.pair_bf16(values_.data() + s / 2 * columns, row, is_last ? nullptr : row + shape.dim(), shape.kv_lora_rank);
    pair.pair_floats(weights_.data() + s / 2 * lanes, weights + s * lanes,
                     is_last ? nullptr : weights + (s + 1) * lanes, lanes);
  }
  multiply_add({.c = acc,
                .c_row = columns,
                .a = weights_.data(),
                .a_row = 1,
                .a_column = lanes,
                .b = values_.data(),
                .b_row = columns,
                .rows = shape.num_heads,
                .columns = padded_columns(shape.kv_lora_rank),
                .depth = (num_rows_ + 1) / 2,
                .beside = &next});
}

// --- integers --------------------------------------------------------------------------------------------------------

void Int8Tile::prepare_queries(float* prepared, const LatentQueries& queries, const LatentShape& shape, float scale) {
  const int64_t pairs = num_pairs(shape);
  thread_local std::vector<float> scratch;  // grows once: a row of floats, then the integers of all heads
  scratch.assign(static_cast<size_t>((2 + shape.num_heads) * pairs), 0.0f);
  std::fill_n(prepared, queries_size(shape), 0.0f);
  kernels<LatentKernels>().round_queries(reinterpret_cast<Int16Pair*>(prepared), prepared + pairs * shape.lanes(),
                                         queries, shape, scale, pairs, scratch.data());
}

void Int8Tile::load(Tensor latents, const int32_t* block_table, int64_t begin, int64_t end, const LatentShape& shape) {
  const uint8_t* rows = latent_row<uint8_t>(latents, block_table, begin);
  const int64_t row_bytes = Int8Latent{shape.kv_lora_rank, shape.rope_dim}.row_bytes();
  widen(end - begin, shape, [&](int64_t s) { return rows + s * row_bytes; });
}

void Int8Tile::gather(Tensor latents, const int32_t* block_table, const int32_t* positions, int64_t num_rows,
                      const LatentShape& shape) {
  for (int64_t s = 0; s < num_rows; ++s) prefetch_row(latents, block_table, positions[s]);
  widen(num_rows, shape,
        [&](int64_t s) -> const uint8_t* { return latent_row<uint8_t>(latents, block_table, positions[s]); });
}

template <class Row>
void Int8Tile::widen(int64_t num_rows, const LatentShape& shape, Row&& row) {
  const Int8Latent layout{shape.kv_lora_rank, shape.rope_dim};
  const int64_t pairs = num_pairs(shape), columns = shape.acc_columns(), groups = layout.num_groups();
  keys_.resize(static_cast<size_t>(kBlockSize * pairs));
  values_.resize(static_cast<size_t>(kBlockSize / 2 * columns));
  scales_.resize(static_cast<size_t>(kBlockSize * groups));
  num_rows_ = num_rows;
  const auto values = [&](int64_t s) { return reinterpret_cast<const int8_t*>(row(s) + layout.values_offset()); };
  for (int64_t s = 0; s < num_rows_; ++s) {
    std::memcpy(scales_.data() + s * groups, row(s), static_cast<size_t>(4 * groups));
    kernels<LatentKernels>().widen_int8(keys_.data() + s * pairs, row(s), layout);
  }
  for (int64_t s = 0; s < num_rows_; s += 2)
    kernels<LatentKernels>().interleave_int8(values_.data() + s / 2 * columns, values(s),
                                             s + 1 < num_rows_ ? values(s + 1) : nullptr, shape.kv_lora_rank);
}

void Int8Tile::score(float* scores, const float* prepared, const LatentShape& shape, Prefetch& next) const {
  const int64_t lanes = shape.lanes(), pairs = num_pairs(shape);
  const int64_t latent_groups = Int8Latent::groups_of(shape.kv_lora_rank);
  const int64_t groups = latent_groups + Int8Latent::groups_of(shape.rope_dim);
  std::fill_n(scores, num_rows_ * lanes, 0.0f);
  const auto add_group = [&](int64_t group, int64_t first_pair, int64_t depth) {
    multiply_add({.c = scores,
                  .c_row = lanes,
                  .a = keys_.data() + first_pair,
                  .a_row = pairs,
                  .a_column = 1,
                  .scales = scales_.data() + group,
                  .scales_stride = groups,
                  .b = reinterpret_cast<const Int16Pair*>(prepared) + first_pair * lanes,
                  .b_row = lanes,
                  .rows = num_rows_,
                  .columns = lanes,
                  .depth = depth,
                  .beside = &next});
  };
  for_groups(shape.kv_lora_rank, [&](int64_t g, int64_t k, int64_t n) { add_group(g, k / 2, (n + 1) / 2); });
  for_groups(shape.rope_dim, [&](int64_t g, int64_t k, int64_t n) {
    add_group(latent_groups + g, (shape.kv_lora_rank + 1) / 2 + k / 2, n / 2);
  });
  kernels<LatentKernels>().scale_lanes(scores, prepared + pairs * lanes, num_rows_, lanes);
}

void Int8Tile::accumulate(float* acc, const float* weights, const LatentShape& shape, Prefetch& next) {
  const int64_t lanes = shape.lanes(), columns = shape.acc_columns();
  const int64_t groups = Int8Latent{shape.kv_lora_rank, shape.rope_dim}.num_groups();
  weights_.resize(static_cast<size_t>(kBlockSize / 2 * lanes));
  head_scales_.resize(static_cast<size_t>(lanes));
  for_groups(shape.kv_lora_rank, [&](int64_t g, int64_t k, int64_t n) {
    kernels<LatentKernels>().round_weights(weights_.data(), head_scales_.data(), weights, scales_.data() + g, groups,
                                           num_rows_, lanes);
    multiply_add({.c = acc + k,
                  .c_row = columns,
                  .a = weights_.data(),
                  .a_row = 1,
                  .a_column = lanes,
                  .scales = head_scales_.data(),
                  .scales_stride = 1,
                  .b = values_.data() + k,
                  .b_row = columns,
                  .rows = shape.num_heads,
                  .columns = padded_columns(n),
                  .depth = (num_rows_ + 1) / 2,
                  .beside = &next});
  });
}

}  // namespace longcat::cpu
