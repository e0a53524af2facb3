// Index keys of the cache, and the scores of many of them for one token.
#pragma once

#include <vector>

#include "cpu/attention/index_kernels.h"
#include "ops/batch.h"

namespace longcat::cpu {

// Writes `values` [dim] as the index key of a position, rounded to the dtype of `index_keys`.
void store_index_key(Tensor index_keys, const int32_t* block_table, int64_t position, const float* values, int64_t dim);

// Returns the index keys of the positions [begin, end) of one block as floats [end - begin, dim]. They are in the cache
// itself or in `scratch` [64, dim].
const float* read_index_keys(float* scratch, Tensor index_keys, const int32_t* block_table, int64_t begin, int64_t end,
                             int64_t dim);

// How keys and queries are multiplied.
enum class IndexArithmetic {
  floats,  // keys of f32 or bf16 as floats
  bf16s,   // keys of bf16 as they are, queries rounded to bf16
  int16s,  // keys of 8 bits, widened; queries of 16 bits with a scale per head. Products and their sums over
           // kIndexGroup values are exact
  bytes,   // the same with keys as they are
};

// rounds_queries: whether queries are rounded to bf16 where the keys are bf16, and an instruction multiplies them.
IndexArithmetic index_arithmetic(DType keys, int64_t dim, bool rounds_queries);

// Index keys of at most kSize positions of a block, in the form of an arithmetic, for all queries.
class IndexTile {
 public:
  // With those after them, and with a token's queries, they stay in the first-level cache.
  static constexpr int64_t kSize = 32;

  // Takes the keys from `begin` on, up to `end` at most. Those after them, up to `end`, are prefetched.
  void load(IndexArithmetic arithmetic, Tensor index_keys, const int32_t* block_table, int64_t begin, int64_t end,
            int64_t dim);

  int64_t num_keys() const { return num_keys_; }

 private:
  friend class IndexQuery;

  std::vector<float> scratch_;
  std::vector<Int16Pair> pairs_;  // [rows, ceil(dim / 2)] of 8-bit keys
  int64_t num_keys_ = 0;
  const void *keys_ = nullptr, *scales_ = nullptr;
  const char* ahead_ = nullptr;  // the stored keys after these, or these
  int64_t key_bytes_ = 0, scale_bytes_ = 0, ahead_key_bytes_ = 0;
};

// The index queries of one token, in the form that scores many keys at once.
class IndexQuery {
 public:
  // q: [num_heads, dim], heads q_stride apart; head_weights: [num_heads], multiplied by `scale`.
  void prepare(IndexArithmetic arithmetic, const float* q, int64_t q_stride, const float* head_weights,
               int64_t num_heads, int64_t dim, float scale);

  // scores [num_keys] of the first keys of a tile in the same arithmetic. A score's bits do not depend on other keys.
  // prefetches: whether to prefetch the keys after the tile, which one query of several does.
  void score(float* scores, const IndexTile& tile, int64_t num_keys, bool prefetches) const;

 private:
  IndexArithmetic arithmetic_ = IndexArithmetic::floats;
  int64_t depth_ = 0, lanes_ = 0;
  std::vector<float> floats_;      // [dim, lanes]
  std::vector<Bf16Pair> bf16s_;    // [dim / 2, lanes]
  std::vector<Int16Pair> int16s_;  // [ceil(dim / 2), lanes]
  std::vector<Int8Quad> bytes_;    // [dim / 4, 2, lanes]
  std::vector<int32_t> begin_;     // [2, lanes] of bytes_
  std::vector<float> weights_;     // [lanes], times the scales of the queries
};

}  // namespace longcat::cpu
