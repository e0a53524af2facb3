// The indexer of sparse attention: stores index keys, scores them tile by tile, and selects positions.
//
// A key costs 2 * index_n_heads * index_head_dim operations for each token, a seventeenth of dense attention at the
// real shape. Scores are never kept: each token has a running list of its best positions. The selected set does not
// depend on how the positions are split among threads, because entries have a total order (score, then position).
#include "cpu/attention/selection.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "cpu/attention/index_kernels.h"
#include "cpu/attention/rope.h"
#include "cpu/cpu_ops.h"
#include "cpu/gemm/product_kernels.h"
#include "cpu/row_kernels.h"
#include "cpu/rows.h"

namespace longcat {

namespace cpu {

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

float scale_of(const uint8_t* row) {
  float scale;
  std::memcpy(&scale, row, sizeof(scale));
  return scale;
}

const int8_t* values_of(const uint8_t* row) {
  return reinterpret_cast<const int8_t*>(row + Int8IndexKey::values_offset());
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

void IndexTile::load(Tensor index_keys, const int32_t* block_table, int64_t begin, int64_t end, int64_t dim) {
  if (index_keys.dtype() != DType::i8) {
    scratch_.resize(static_cast<size_t>(kBlockSize * dim));
    keys_ = read_index_keys(scratch_.data(), index_keys, block_table, begin, end, dim);
    return;
  }
  const int64_t num_pairs = (dim + 1) / 2;
  pairs_.resize(static_cast<size_t>(kBlockSize * num_pairs));
  scales_.resize(static_cast<size_t>(kBlockSize));
  for (int64_t s = begin; s < end; ++s) {
    const uint8_t* const row = latent_row<uint8_t>(index_keys, block_table, s);
    scales_[static_cast<size_t>(s - begin)] = scale_of(row);
    kernels<IndexKernels>().widen_key(pairs_.data() + (s - begin) * num_pairs, values_of(row), dim);
  }
}

IndexQuery::IndexQuery(const float* q, int64_t q_stride, const float* head_weights, int64_t num_heads, int64_t dim,
                       float scale, DType keys)
    : dim_(dim), lanes_(padded_columns(num_heads)), weights_(static_cast<size_t>(lanes_)) {
  if (keys == DType::i8) {
    const int64_t num_pairs = (dim + 1) / 2;
    pairs_.resize(static_cast<size_t>(num_pairs * lanes_));
    std::vector<Int16Pair> rounded(static_cast<size_t>(num_pairs));
    for (int64_t h = 0; h < num_heads; ++h) {
      const float query_scale = kernels<IndexKernels>().round_query(&rounded.front().first, q + h * q_stride, dim);
      for (int64_t k = 0; k < num_pairs; ++k)
        pairs_[static_cast<size_t>(k * lanes_ + h)] = rounded[static_cast<size_t>(k)];
      weights_[static_cast<size_t>(h)] = head_weights[h] * scale * query_scale;
    }
    return;
  }
  queries_.resize(static_cast<size_t>(dim * lanes_));
  for (int64_t h = 0; h < num_heads; ++h) {
    for (int64_t k = 0; k < dim; ++k) queries_[static_cast<size_t>(k * lanes_ + h)] = q[h * q_stride + k];
    weights_[static_cast<size_t>(h)] = head_weights[h] * scale;
  }
}

void IndexQuery::score(float* scores, const IndexTile& tile, int64_t num_keys) const {
  thread_local std::vector<float> products;  // grows once
  products.assign(static_cast<size_t>(num_keys * lanes_), 0.0f);
  if (queries_.empty()) {
    const int64_t num_pairs = (dim_ + 1) / 2;
    for (int64_t k = 0; k < num_pairs; k += kGroup / 2)
      multiply_add({.c = products.data(),
                    .c_row = lanes_,
                    .a = tile.pairs() + k,
                    .a_row = num_pairs,
                    .a_column = 1,
                    .scales = tile.scales(),
                    .scales_stride = 1,
                    .b = pairs_.data() + k * lanes_,
                    .b_row = lanes_,
                    .rows = num_keys,
                    .columns = lanes_,
                    .depth = std::min(kGroup / 2, num_pairs - k)});
  } else {
    multiply_add({.c = products.data(),
                  .c_row = lanes_,
                  .a = tile.keys(),
                  .a_row = dim_,
                  .a_column = 1,
                  .b = queries_.data(),
                  .b_row = lanes_,
                  .rows = num_keys,
                  .columns = lanes_,
                  .depth = dim_});
  }
  kernels<IndexKernels>().weigh_heads(scores, products.data(), weights_.data(), num_keys, lanes_);
}

namespace {

// Unsigned integers in the order of the scores; 0 for NaN.
uint32_t order_of(float score) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return score == score ? order : 0;
}

}  // namespace

void RunningTopK::add(const float* scores, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t order = order_of(scores[i]);
    if (has_threshold_ && order <= threshold_) continue;
    entries_.push_back(static_cast<uint64_t>(order) << 32 | ~static_cast<uint32_t>(first + i));
    if (entries_.size() == 2 * k_) {
      best();
      threshold_ = static_cast<uint32_t>(*std::min_element(entries_.begin(), entries_.end()) >> 32);
      has_threshold_ = true;
    }
  }
}

std::vector<uint64_t>& RunningTopK::best() {
  if (entries_.size() > k_) {
    const auto end = entries_.begin() + static_cast<std::ptrdiff_t>(k_);
    std::nth_element(entries_.begin(), end, entries_.end(), std::greater<>());
    entries_.erase(end, entries_.end());
  }
  return entries_;
}

}  // namespace cpu

namespace {

constexpr int64_t kRowsAtOnce = 8;       // rows of a sequence that share a tile of keys
constexpr int64_t kMinPiece = 2048;      // positions that are worth a range of their own
constexpr int64_t kPiecesPerThread = 4;  // enough to even out the load

// Adjacent rows of a sequence whose tokens select.
struct RowGroup {
  int64_t first, count;  // rows of the batch
  const int32_t* block_table;
  int64_t end;  // of the positions that the last row may choose
};

}  // namespace

void CpuOps::index_store(Tensor index_keys, Tensor k, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                         const ForwardBatch& batch) {
  for (int64_t t = 0; t < k.size(0); ++t) {
    float* const row = k.row<float>(t);
    cpu::norm_row(row, row, norm_weight.data<float>(), k.size(1), eps);
    cpu::rotate_pairs(row, cos.row<float>(t), sin.row<float>(t), 2 * cos.size(1));
    cpu::store_index_key(index_keys, batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[t]),
                         batch.positions.data<int32_t>()[t], row, k.size(1));
  }
}

void CpuOps::select_positions(Tensor selected, Tensor q, Tensor head_weights, Tensor index_keys,
                              const ForwardBatch& batch, const SelectionRule& rule, float scale) {
  const int32_t* const positions = batch.positions.data<int32_t>();
  const int32_t* const sequences = batch.sequence_idx.data<int32_t>();
  const int64_t num_free = rule.topk - rule.init_tokens - rule.local_tokens, dim = q.size(2);
  // Positions from here on are selected always.
  const auto local_begin = [&](int64_t row) { return positions[row] + 1 - rule.local_tokens; };

  std::vector<RowGroup> groups;
  for (int64_t row = 0; row < q.size(0); ++row) {
    if (positions[row] < rule.topk) continue;
    const bool joins = !groups.empty() && groups.back().first + groups.back().count == row &&
                       groups.back().count < kRowsAtOnce && sequences[row] == sequences[row - 1];
    if (!joins) groups.push_back({row, 0, batch.block_tables.row<int32_t>(sequences[row]), 0});
    ++groups.back().count;
    groups.back().end = local_begin(row);
  }
  if (groups.empty()) return;

  // Pieces of the positions, where there are few groups.
  const int64_t num_groups = static_cast<int64_t>(groups.size());
  int64_t longest = 0;
  for (const RowGroup& group : groups) longest = std::max(longest, group.end);
  const int64_t num_pieces =
      std::clamp<int64_t>(kPiecesPerThread * num_threads() / num_groups, 1, (longest + kMinPiece - 1) / kMinPiece);
  std::vector<std::vector<uint64_t>> best(static_cast<size_t>(num_groups * num_pieces * kRowsAtOnce));
  const auto best_of = [&](int64_t group, int64_t piece, int64_t i) -> std::vector<uint64_t>& {
    return best[static_cast<size_t>((group * num_pieces + piece) * kRowsAtOnce + i)];
  };

  const auto score_piece = [&](int64_t group_idx, int64_t piece) {
    const RowGroup& group = groups[static_cast<size_t>(group_idx)];
    const int64_t num_tiles = (group.end + kBlockSize - 1) / kBlockSize;
    const int64_t begin = num_tiles * piece / num_pieces * kBlockSize;
    const int64_t end = std::min(num_tiles * (piece + 1) / num_pieces * kBlockSize, group.end);
    std::vector<cpu::IndexQuery> queries;
    std::vector<cpu::RunningTopK> lists;
    for (int64_t row = group.first; row < group.first + group.count; ++row) {
      queries.emplace_back(q.row<float>(row), q.stride(1), head_weights.row<float>(row), q.size(1), dim, scale,
                           index_keys.dtype());
      lists.emplace_back(num_free);
    }
    thread_local cpu::IndexTile keys;  // its vectors grow once
    float scores[kBlockSize];
    for (int64_t tile = begin; tile < end; tile += kBlockSize) {
      const int64_t tile_end = std::min(tile + kBlockSize, end);
      keys.load(index_keys, group.block_table, tile, tile_end, dim);
      for (int64_t i = 0; i < group.count; ++i) {
        const int64_t first = std::max(tile, rule.init_tokens);
        const int64_t last = std::min(tile_end, local_begin(group.first + i));
        if (first >= last) continue;
        queries[static_cast<size_t>(i)].score(scores, keys, last - tile);
        lists[static_cast<size_t>(i)].add(scores + (first - tile), first, last - first);
      }
    }
    for (int64_t i = 0; i < group.count; ++i)
      best_of(group_idx, piece, i) = std::move(lists[static_cast<size_t>(i)].best());
  };

  const auto write_row = [&](int64_t group_idx, int64_t i) {
    const int64_t row = groups[static_cast<size_t>(group_idx)].first + i;
    std::vector<uint64_t>& all = best_of(group_idx, 0, i);
    for (int64_t piece = 1; piece < num_pieces; ++piece) {
      const std::vector<uint64_t>& more = best_of(group_idx, piece, i);
      all.insert(all.end(), more.begin(), more.end());
    }
    if (num_free > 0) std::nth_element(all.begin(), all.begin() + (num_free - 1), all.end(), std::greater<>());
    int32_t* out = selected.row<int32_t>(row);
    for (int64_t j = 0; j < rule.init_tokens; ++j) *out++ = static_cast<int32_t>(j);
    int32_t* const chosen = out;
    for (int64_t j = 0; j < num_free; ++j) *out++ = cpu::RunningTopK::position_of(all[static_cast<size_t>(j)]);
    std::sort(chosen, out);
    for (int64_t j = local_begin(row); j <= positions[row]; ++j) *out++ = static_cast<int32_t>(j);
  };

  if (num_free > 0)
    pool_.parallel_for(num_groups * num_pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) score_piece(i / num_pieces, i % num_pieces);
    });
  pool_.parallel_for(num_groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group)
      for (int64_t i = 0; i < groups[static_cast<size_t>(group)].count; ++i) write_row(group, i);
  });
}

void CpuOps::extend_selection(Tensor selected, Tensor rows, Tensor positions) {
  const int64_t last = selected.size(1) - 1;
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const int32_t* const from = selected.row<int32_t>(rows.data<int32_t>()[i]);
    int32_t* const to = selected.row<int32_t>(i);
    if (from != to) std::copy_n(from, last, to);  // rows[i] > i: no later row is overwritten
    to[last] = positions.data<int32_t>()[i];
  }
}

}  // namespace longcat
