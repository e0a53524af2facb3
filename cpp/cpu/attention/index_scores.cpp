#include "cpu/attention/index_scores.h"

#include <algorithm>
#include <cstring>

#include "cpu/gemm/packed_kernels.h"
#include "cpu/gemm/product_kernels.h"
#include "cpu/row_kernels.h"
#include "ops/packed.h"

namespace longcat::cpu {

void store_index_key(Tensor index_keys, const int32_t* block_table, int64_t position, const float* values,
                     int64_t dim) {
  switch (index_keys.dtype()) {
    case DType::i8: {
      uint8_t* const row = latent_row<uint8_t>(index_keys, block_table, position);
      const float scale = kernels<IndexKernels>().round_key(
          reinterpret_cast<int8_t*>(row + Int8IndexKey::values_offset()), values, dim);
      std::memcpy(row, &scale, sizeof(scale));
      return;
    }
    case DType::bf16: {
      bf16* const row = latent_row<bf16>(index_keys, block_table, position);
      for (int64_t k = 0; k < dim; ++k) row[k] = to_bf16(values[k]);
      return;
    }
    default:
      std::copy_n(values, dim, latent_row<float>(index_keys, block_table, position));
  }
}

namespace {

const int8_t* values_of(const uint8_t* row) {
  return reinterpret_cast<const int8_t*>(row + Int8IndexKey::values_offset());
}

float scale_of(const uint8_t* row) {
  float scale;
  std::memcpy(&scale, row, sizeof(scale));
  return scale;
}

const char* key_address(Tensor index_keys, const int32_t* block_table, int64_t position) {
  const int64_t key_bytes = index_keys.size(2) * size_of(index_keys.dtype());
  return static_cast<const char*>(index_keys.index(0, block_table[position / kBlockSize]).raw()) +
         position % kBlockSize * key_bytes;
}

}  // namespace

const float* read_index_keys(float* scratch, Tensor index_keys, const int32_t* block_table, int64_t begin, int64_t end,
                             int64_t dim) {
  switch (index_keys.dtype()) {
    case DType::i8:
      for (int64_t s = begin; s < end; ++s) {
        const uint8_t* const row = latent_row<uint8_t>(index_keys, block_table, s);
        for (int64_t k = 0; k < dim; ++k)
          scratch[(s - begin) * dim + k] = static_cast<float>(values_of(row)[k]) * scale_of(row);
      }
      return scratch;
    case DType::bf16:
      kernels<RowKernels>().widen_bf16(scratch, latent_row<bf16>(index_keys, block_table, begin), (end - begin) * dim);
      return scratch;
    default:
      return latent_row<float>(index_keys, block_table, begin);
  }
}

IndexArithmetic index_arithmetic(DType keys, int64_t dim, bool rounds_queries) {
  const IndexKernels& available = kernels<IndexKernels>();
  if (keys == DType::i8)
    return available.bytes && dim % 4 == 0 && dim <= kIndexGroup ? IndexArithmetic::bytes : IndexArithmetic::int16s;
  return keys == DType::bf16 && rounds_queries && available.bf16s && dim % 2 == 0 ? IndexArithmetic::bf16s
                                                                                  : IndexArithmetic::floats;
}

void IndexTile::load(IndexArithmetic arithmetic, Tensor index_keys, const int32_t* block_table, int64_t begin,
                     int64_t end, int64_t dim) {
  static_assert(kBlockSize % kSize == 0);
  const char* const first = key_address(index_keys, block_table, begin);
  const int64_t stored_bytes = index_keys.size(2) * size_of(index_keys.dtype());
  const int64_t tile_end = std::min(end, begin + (arithmetic == IndexArithmetic::floats ? kSize / 2 : kSize));
  num_keys_ = tile_end - begin;
  keys_ = first;
  key_bytes_ = scale_bytes_ = stored_bytes;
  ahead_ = tile_end < end ? key_address(index_keys, block_table, tile_end) : first;
  ahead_key_bytes_ = stored_bytes;
  scales_ = first;
  const bool reads_in_place =
      arithmetic == IndexArithmetic::bf16s || arithmetic == IndexArithmetic::bytes || index_keys.dtype() == DType::f32;
  if (arithmetic == IndexArithmetic::bytes) keys_ = first + Int8IndexKey::values_offset();
  if (reads_in_place) return;

  if (arithmetic == IndexArithmetic::floats) {
    scratch_.resize(static_cast<size_t>(kSize / 2 * dim));
    keys_ = read_index_keys(scratch_.data(), index_keys, block_table, begin, tile_end, dim);
    key_bytes_ = dim * static_cast<int64_t>(sizeof(float));
    return;
  }
  const int64_t num_pairs = (dim + 1) / 2;
  pairs_.resize(static_cast<size_t>(kSize * num_pairs));
  for (int64_t s = begin; s < tile_end; ++s)
    kernels<IndexKernels>().widen_key(pairs_.data() + (s - begin) * num_pairs,
                                      values_of(latent_row<uint8_t>(index_keys, block_table, s)), dim);
  keys_ = pairs_.data();
  key_bytes_ = num_pairs * static_cast<int64_t>(sizeof(Int16Pair));
}

void IndexQuery::prepare(IndexArithmetic arithmetic, const float* q, int64_t q_stride, const float* head_weights,
                         int64_t num_heads, int64_t dim, float scale) {
  arithmetic_ = arithmetic;
  lanes_ = padded_columns(num_heads);
  weights_.assign(static_cast<size_t>(lanes_), 0.0f);
  for (int64_t h = 0; h < num_heads; ++h) weights_[static_cast<size_t>(h)] = head_weights[h] * scale;
  switch (arithmetic) {
    case IndexArithmetic::floats:
      depth_ = dim;
      floats_.assign(static_cast<size_t>(depth_ * lanes_), 0.0f);
      for (int64_t h = 0; h < num_heads; ++h)
        for (int64_t k = 0; k < dim; ++k) floats_[static_cast<size_t>(k * lanes_ + h)] = q[h * q_stride + k];
      return;
    case IndexArithmetic::bf16s: {
      depth_ = dim / 2;
      bf16s_.assign(static_cast<size_t>(depth_ * lanes_), {});
      std::vector<bf16> rounded(static_cast<size_t>(num_quant_blocks(dim) * kQuantBlock));
      for (int64_t h = 0; h < num_heads; ++h) {
        kernels<PackedKernels>().round_row(rounded.data(), q + h * q_stride, dim);
        for (int64_t k = 0; k < depth_; ++k)
          bf16s_[static_cast<size_t>(k * lanes_ + h)] = {rounded[static_cast<size_t>(2 * k)],
                                                         rounded[static_cast<size_t>(2 * k + 1)]};
      }
      return;
    }
    case IndexArithmetic::int16s:
    case IndexArithmetic::bytes: {
      const int64_t num_pairs = (dim + 1) / 2;
      int16s_.assign(static_cast<size_t>(num_pairs * lanes_), {});
      depth_ = num_pairs;
      std::vector<Int16Pair> rounded(static_cast<size_t>(num_pairs));
      for (int64_t h = 0; h < num_heads; ++h) {
        const float query_scale = kernels<IndexKernels>().round_query(&rounded.front().first, q + h * q_stride, dim);
        for (int64_t k = 0; k < num_pairs; ++k)
          int16s_[static_cast<size_t>(k * lanes_ + h)] = rounded[static_cast<size_t>(k)];
        weights_[static_cast<size_t>(h)] *= query_scale;
      }
      if (arithmetic == IndexArithmetic::int16s) return;
      depth_ = dim / 4;
      bytes_.resize(static_cast<size_t>(2 * depth_ * lanes_));
      begin_.resize(static_cast<size_t>(2 * lanes_));
      split_query(bytes_.data(), begin_.data(), int16s_.data(), depth_, lanes_);
    }
  }
}

void IndexQuery::score(float* scores, const IndexTile& tile, int64_t num_keys, bool prefetches) const {
  const auto score_with = [&]<class Value>(auto kernel, const std::vector<Value>& queries) {
    kernel(IndexScores<Value>{.scores = scores,
                              .keys = tile.keys_,
                              .key_bytes = tile.key_bytes_,
                              .scales = tile.scales_,
                              .scale_bytes = tile.scale_bytes_,
                              .queries = queries.data(),
                              .weights = weights_.data(),
                              .num_keys = num_keys,
                              .depth = depth_,
                              .lanes = lanes_,
                              .begin = begin_.data(),
                              .ahead = prefetches ? tile.ahead_ : static_cast<const char*>(tile.keys_),
                              .ahead_key_bytes = tile.ahead_key_bytes_,
                              .ahead_step = (tile.ahead_key_bytes_ + depth_ - 1) / depth_});
  };
  const IndexKernels& available = kernels<IndexKernels>();
  switch (arithmetic_) {
    case IndexArithmetic::floats:
      return score_with(available.floats, floats_);
    case IndexArithmetic::bf16s:
      return score_with(available.bf16s, bf16s_);
    case IndexArithmetic::int16s:
      return score_with(available.int16s, int16s_);
    case IndexArithmetic::bytes:
      return score_with(available.bytes, bytes_);
  }
}

}  // namespace longcat::cpu
