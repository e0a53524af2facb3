// Latent rows of the cache: storing them, reading them as floats, and tiles of them for absorbed attention.
#pragma once

#include <vector>

#include "cpu/gemm/product_kernels.h"
#include "ops/batch.h"

namespace longcat::cpu {

// Writes `values` [kv_lora + rope] as row `position` of a sequence, rounded to the dtype of `latents`.
void store_latent(Tensor latents, const int32_t* block_table, int64_t position, const float* values,
                  int64_t kv_lora_rank, int64_t rope_dim);

// Returns the rows of the positions [begin, end) of one block as floats [end - begin, kv_lora + rope]. They are in the
// cache itself or in `scratch` [64, kv_lora + rope].
const float* read_latents(float* scratch, Tensor latents, const int32_t* block_table, int64_t begin, int64_t end,
                          int64_t kv_lora_rank, int64_t rope_dim);

// The extents of absorbed attention. Lanes are heads, padded for product_kernels.h.
struct LatentShape {
  int64_t num_heads, kv_lora_rank, rope_dim;

  int64_t dim() const { return kv_lora_rank + rope_dim; }
  int64_t lanes() const { return padded_columns(num_heads); }
  // Columns of a head's accumulator: whole registers, plus one tile. Without that, heads would lie a power of two
  // apart, and the processor would take their addresses for equal (4K aliasing).
  int64_t acc_columns() const { return padded_columns(kv_lora_rank) + kTileColumns; }
};

// The queries of one token. Head h is at latent + h * latent_stride and rope + h * rope_stride.
struct LatentQueries {
  const float *latent, *rope;  // [num_heads, kv_lora_rank]; [num_heads, rope_dim]
  int64_t latent_stride, rope_stride;
};

// At most 64 latent rows, widened once for all heads: of one block, or gathered from ascending positions. FloatTile,
// Bf16Tile and Int8Tile have the same functions.
class FloatTile {
 public:
  // Number of floats of one token's queries in the form that score() reads, and the conversion to that form, times
  // `scale`.
  static int64_t queries_size(const LatentShape& shape) { return shape.dim() * shape.lanes(); }
  static void prepare_queries(float* prepared, const LatentQueries& queries, const LatentShape& shape, float scale);

  void load(Tensor latents, const int32_t* block_table, int64_t begin, int64_t end, const LatentShape& shape);
  void gather(Tensor latents, const int32_t* block_table, const int32_t* positions, int64_t num_rows,
              const LatentShape& shape);

  // scores [rows, lanes] = rows . queries.
  void score(float* scores, const float* prepared, const LatentShape& shape, Prefetch& next) const;

  // acc [heads, acc_columns] += weights^T rows; weights: [rows, lanes].
  void accumulate(float* acc, const float* weights, const LatentShape& shape, Prefetch& next);

 private:
  std::vector<float> scratch_;
  const float* rows_ = nullptr;  // [num_rows_, kv_lora + rope]
  int64_t num_rows_ = 0;
};

// A tile in bf16, as it is stored, with queries and weights rounded to bf16, on sets that multiply these. Rows are read
// in the cache itself.
class Bf16Tile {
 public:
  // Whether there are kernels for it on this machine, and the rows are whole pairs.
  static bool fits(Tensor latents, const LatentShape& shape);

  static int64_t queries_size(const LatentShape& shape) { return shape.dim() / 2 * shape.lanes(); }
  static void prepare_queries(float* prepared, const LatentQueries& queries, const LatentShape& shape, float scale);

  void load(Tensor latents, const int32_t* block_table, int64_t begin, int64_t end, const LatentShape& shape);
  void gather(Tensor latents, const int32_t* block_table, const int32_t* positions, int64_t num_rows,
              const LatentShape& shape);
  void score(float* scores, const float* prepared, const LatentShape& shape, Prefetch& next) const;
  void accumulate(float* acc, const float* weights, const LatentShape& shape, Prefetch& next);

 private:
  std::vector<bf16> gathered_;
  const bf16* rows_ = nullptr;     // [num_rows_, kv_lora + rope]
  std::vector<Bf16Pair> values_;   // [ceil(rows / 2), acc_columns] two rows' values of a column
  std::vector<Bf16Pair> weights_;  // [ceil(rows / 2), lanes]
  int64_t num_rows_ = 0;
};

// A tile in 16-bit integers. Latents keep their stored values. Queries have 14 bits with a scale per head; weights have
// 15 bits with a scale per head and group. All products, and their sums over a group or over the rows, are exact.
class Int8Tile {
 public:
  static int64_t queries_size(const LatentShape& shape) { return (num_pairs(shape) + 1) * shape.lanes(); }
  static void prepare_queries(float* prepared, const LatentQueries& queries, const LatentShape& shape, float scale);

  void load(Tensor latents, const int32_t* block_table, int64_t begin, int64_t end, const LatentShape& shape);
  void gather(Tensor latents, const int32_t* block_table, const int32_t* positions, int64_t num_rows,
              const LatentShape& shape);
  void score(float* scores, const float* prepared, const LatentShape& shape, Prefetch& next) const;
  void accumulate(float* acc, const float* weights, const LatentShape& shape, Prefetch& next);

 private:
  template <class Row>
  void widen(int64_t num_rows, const LatentShape& shape, Row&& row);  // row(s): the stored row s

  static int64_t num_pairs(const LatentShape& shape) { return (shape.kv_lora_rank + 1) / 2 + shape.rope_dim / 2; }

  std::vector<Int16Pair> keys_;     // [rows, num_pairs] adjacent values of a row
  std::vector<Int16Pair> values_;   // [rows / 2, acc_columns] two rows' values of a column
  std::vector<float> scales_;       // [rows, num_groups]
  std::vector<Int16Pair> weights_;  // [rows / 2, lanes]
  std::vector<float> head_scales_;  // [lanes]
  int64_t num_rows_ = 0;
};

}  // namespace longcat::cpu
