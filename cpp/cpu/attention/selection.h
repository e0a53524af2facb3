// Index scores of sparse attention, and the positions with the best of them.
#pragma once

#include <vector>

#include "cpu/gemm/product_kernels.h"
#include "ops/batch.h"

namespace longcat::cpu {

// Writes `values` [dim] as the index key of a position, rounded to the dtype of `index_keys`.
void store_index_key(Tensor index_keys, const int32_t* block_table, int64_t position, const float* values, int64_t dim);

// Returns the index keys of the positions [begin, end) of one block as floats [end - begin, dim]. They are in the cache
// itself or in `scratch` [64, dim].
const float* read_index_keys(float* scratch, Tensor index_keys, const int32_t* block_table, int64_t begin, int64_t end,
                             int64_t dim);

// Index keys of at most 64 positions of a block, widened once for all queries: to floats, or 8-bit keys to 16 bits.
class IndexTile {
 public:
  void load(Tensor index_keys, const int32_t* block_table, int64_t begin, int64_t end, int64_t dim);

  const float* keys() const { return keys_; }
  const Int16Pair* pairs() const { return pairs_.data(); }
  const float* scales() const { return scales_.data(); }

 private:
  std::vector<float> scratch_;
  const float* keys_ = nullptr;   // [rows, dim]; not of 8-bit keys
  std::vector<Int16Pair> pairs_;  // [rows, ceil(dim / 2)] of 8-bit keys
  std::vector<float> scales_;     // [rows] of 8-bit keys
};

// The index queries of one token, in the form that scores many keys at once. For 8-bit keys, the queries have 16 bits
// with a scale per head; products, and their sums over kGroup values, are exact.
class IndexQuery {
 public:
  // q: [num_heads, dim], heads q_stride apart; head_weights: [num_heads], multiplied by `scale`; keys: their dtype.
  IndexQuery(const float* q, int64_t q_stride, const float* head_weights, int64_t num_heads, int64_t dim, float scale,
             DType keys);

  // scores [num_keys] of the first keys of a tile. A score's bits do not depend on the other keys.
  void score(float* scores, const IndexTile& tile, int64_t num_keys) const;

 private:
  static constexpr int64_t kGroup = 512;  // 127 * 32767 * 512 < 2^31

  int64_t dim_, lanes_;
  std::vector<float> queries_;    // [dim, lanes]; for 8-bit keys empty, and
  std::vector<Int16Pair> pairs_;  // [ceil(dim / 2), lanes]
  std::vector<float> weights_;    // [lanes], times the scales of the queries
};

// The best positions of those added so far. Positions are added in ascending order; of equal scores, the lower position
// is better. NaN is worse than every number.
class RunningTopK {
 public:
  explicit RunningTopK(int64_t k) : k_(static_cast<size_t>(k)) { entries_.reserve(2 * k_); }

  // Adds the positions first.. with scores [count].
  void add(const float* scores, int64_t first, int64_t count);

  // The best k entries, or all when there are fewer, in no order. A larger entry is better: it holds the score's order
  // in its upper half, and the position, inverted, in its lower half.
  std::vector<uint64_t>& best();

  static int32_t position_of(uint64_t entry) { return static_cast<int32_t>(~static_cast<uint32_t>(entry)); }

 private:
  size_t k_;
  uint32_t threshold_ = 0;  // order of the k-th best score; a later position must exceed it
  bool has_threshold_ = false;
  std::vector<uint64_t> entries_;  // at most 2 k
};

}  // namespace longcat::cpu
