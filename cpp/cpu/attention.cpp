// MLA over the paged latent cache: one latent row of kv_lora_rank + rope values a token, shared by all heads. Generated
// tokens attend to the latents themselves (absorbed), prompt tokens to keys and values made of them (materialised).
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/latents.h"
#include "cpu/matmul.h"
#include "cpu/rope.h"
#include "cpu/rows.h"
#include "cpu/vec.h"

namespace longcat {

namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// --- absorbed ------------------------------------------------------------------------------------------------------

constexpr int64_t kHeadGroup = 8;  // heads that share a latent row while it is near

// scores[s] = (q_latent . c_s + q_rope . k_s) * scale over n latent rows; returns the largest of them and `max`.
LC_CLONES float score_rows(float* scores, float max, const float* q_latent, const float* q_rope, const float* rows,
                           int64_t n, int64_t kv_lora_rank, int64_t rope_dim, float scale) {
  for (int64_t s = 0; s < n; ++s) {
    const float* row = rows + s * (kv_lora_rank + rope_dim);
    scores[s] = (vec::dot(q_latent, row, kv_lora_rank) + vec::dot(q_rope, row + kv_lora_rank, rope_dim)) * scale;
    max = std::max(max, scores[s]);
  }
  return max;
}

// acc += exp(scores[s] - max) c_s; returns sum plus the exponentials.
LC_CLONES float accumulate_rows(float* acc, float sum, const float* scores, float max, const float* rows, int64_t n,
                                int64_t kv_lora_rank, int64_t rope_dim) {
  for (int64_t s = 0; s < n; ++s) {
    const float weight = std::exp(scores[s] - max);
    sum += weight;
    vec::axpy(acc, weight, rows + s * (kv_lora_rank + rope_dim), kv_lora_rank);
  }
  return sum;
}

// Result of one head over one piece of the history, before normalisation.
struct Partial {
  float max = kNothing, sum = 0;
  std::vector<float> scores;  // [kMaxKvPiece]
  std::vector<float> acc;     // [kv_lora_rank] sum of exp(score - max) * c
};

// total = total * keep + piece * take, the two rescaled to their common maximum. NaN scores stay NaN.
void combine(float* total, float& total_max, float& total_sum, const Partial& piece, int64_t dim) {
  const float max = std::max(total_max, piece.max);
  const float keep = std::exp(total_max - max), take = std::exp(piece.max - max);
  total_sum = total_sum * keep + piece.sum * take;
  for (int64_t k = 0; k < dim; ++k) total[k] = total[k] * keep + piece.acc[static_cast<size_t>(k)] * take;
  total_max = max;
}

// --- materialised --------------------------------------------------------------------------------------------------

constexpr int64_t kLanes = 2 * vec::kLanes;  // columns of a register tile
constexpr int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// c[i][j] += sum_k a[i][k] b[k][j], k ascending, one accumulator an element, for R rows and one register tile.
template <int R>
LC_INLINE void multiply_tile(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                             int64_t depth) {
  vec::f32x16 acc[R][2];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 2; ++j) acc[r][j] = vec::load(c + r * ldc + j * vec::kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    const vec::f32x16 b0 = vec::load(b + k * ldb), b1 = vec::load(b + k * ldb + vec::kLanes);
    for (int r = 0; r < R; ++r) {
      const float x = a[r * lda + k];
      acc[r][0] += x * b0;
      acc[r][1] += x * b1;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 2; ++j) vec::store(c + r * ldc + j * vec::kLanes, acc[r][j]);
}

// C += A B. a: [rows, depth]; b: [depth, columns]; columns: a multiple of kLanes.
LC_CLONES void multiply_add(float* c, int64_t ldc, const float* a, int64_t lda, const float* b, int64_t ldb,
                            int64_t rows, int64_t columns, int64_t depth) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) multiply_tile<4>(c + i * ldc + j, ldc, a + i * lda, lda, b + j, ldb, depth);
    for (; i < rows; ++i) multiply_tile<1>(c + i * ldc + j, ldc, a + i * lda, lda, b + j, ldb, depth);
  }
}

// What one thread needs to compute a head of a chunk.
struct PrefillScratch {
  std::vector<float> w_uk;                // [nope, kv_lora] of the head
  std::vector<float> w_uv;                // [kv_lora, padded(v)] of the head, transposed
  std::vector<float> latents;             // [kPrefillTile, kv_lora + rope]
  std::vector<float> latents_transposed;  // [kv_lora, kPrefillTile]
  std::vector<float> keys;                // [nope + rope, kPrefillTile]: a key a column
  std::vector<float> values;              // [kPrefillTile, padded(v)]
  std::vector<float> scores;              // [rows, kPrefillTile]
  std::vector<float> acc;                 // [rows, padded(v)]
  std::vector<float> max, sum;            // [rows]
};

// One head of one chunk of prompt tokens.
class PrefillHead {
 public:
  PrefillHead(PrefillScratch& scratch, Tensor latents, const Weight& k_up, const Weight& v_up, int64_t head,
              int64_t num_heads, float scale)
      : s_(scratch),
        latents_(latents),
        kv_lora_rank_(v_up.in_features),
        nope_(k_up.in_features),
        v_dim_(v_up.out_features / num_heads),
        v_columns_(padded(v_dim_)),
        scale_(scale) {
    std::vector<float>& row = s_.latents;  // free so far
    row.resize(static_cast<size_t>(std::max(nope_, kv_lora_rank_)));
    s_.w_uk.resize(static_cast<size_t>(nope_ * kv_lora_rank_));
    for (int64_t l = 0; l < kv_lora_rank_; ++l) {
      cpu::read_row(row.data(), k_up, head * kv_lora_rank_ + l);
      for (int64_t d = 0; d < nope_; ++d) s_.w_uk[static_cast<size_t>(d * kv_lora_rank_ + l)] = row[d];
    }
    s_.w_uv.assign(static_cast<size_t>(kv_lora_rank_ * v_columns_), 0.0f);
    for (int64_t d = 0; d < v_dim_; ++d) {
      cpu::read_row(row.data(), v_up, head * v_dim_ + d);
      for (int64_t l = 0; l < kv_lora_rank_; ++l) s_.w_uv[static_cast<size_t>(l * v_columns_ + d)] = row[l];
    }
  }

  // out [num_rows, v], q [num_rows, nope + rope]: rows of this head, `start` the position of the first.
  void attend(float* out, int64_t out_stride, const float* q, int64_t q_stride, int64_t head_dim, int64_t num_rows,
              int64_t start, const int32_t* block_table) {
    const size_t rows = static_cast<size_t>(num_rows);
    s_.scores.resize(rows * kPrefillTile);
    s_.acc.assign(rows * static_cast<size_t>(v_columns_), 0.0f);
    s_.max.assign(rows, kNothing);
    s_.sum.assign(rows, 0.0f);
    for (int64_t tile = 0; tile < start + num_rows; tile += kPrefillTile) {
      const int64_t num_keys = std::min(kPrefillTile, start + num_rows - tile);
      materialise(tile, num_keys, head_dim - nope_, block_table);
      // Rows from `all` on see the whole tile; those before it, from `some` on, a part of it each.
      const int64_t some = std::max<int64_t>(0, tile - start);
      const int64_t all = std::min(num_rows, std::max<int64_t>(some, tile + kPrefillTile - 1 - start));
      for (int64_t i = some; i < all; ++i)
        attend_tile(q + i * q_stride, q_stride, head_dim, i, 1, start + i + 1 - tile);
      if (all < num_rows) attend_tile(q + all * q_stride, q_stride, head_dim, all, num_rows - all, kPrefillTile);
    }
    for (int64_t i = 0; i < num_rows; ++i)
      for (int64_t d = 0; d < v_dim_; ++d)
        out[i * out_stride + d] = s_.acc[static_cast<size_t>(i * v_columns_ + d)] / s_.sum[static_cast<size_t>(i)];
  }

 private:
  // Keys and values of the positions [tile, tile + num_keys); what is behind them stays zero.
  void materialise(int64_t tile, int64_t num_keys, int64_t rope_dim, const int32_t* block_table) {
    const int64_t dim = kv_lora_rank_ + rope_dim;
    s_.latents.resize(static_cast<size_t>(kPrefillTile * dim));
    const float* rows =
        cpu::read_latents(s_.latents.data(), latents_, block_table, tile, tile + num_keys, kv_lora_rank_, rope_dim);
    s_.latents_transposed.assign(static_cast<size_t>(kv_lora_rank_ * kPrefillTile), 0.0f);
    s_.keys.assign(static_cast<size_t>((nope_ + rope_dim) * kPrefillTile), 0.0f);
    s_.values.assign(static_cast<size_t>(kPrefillTile * v_columns_), 0.0f);
    for (int64_t s = 0; s < num_keys; ++s) {
      for (int64_t l = 0; l < kv_lora_rank_; ++l)
        s_.latents_transposed[static_cast<size_t>(l * kPrefillTile + s)] = rows[s * dim + l];
      for (int64_t r = 0; r < rope_dim; ++r)
        s_.keys[static_cast<size_t>((nope_ + r) * kPrefillTile + s)] = rows[s * dim + kv_lora_rank_ + r];
    }
    multiply_add(s_.keys.data(), kPrefillTile, s_.w_uk.data(), kv_lora_rank_, s_.latents_transposed.data(),
                 kPrefillTile, nope_, kPrefillTile, kv_lora_rank_);
    multiply_add(s_.values.data(), v_columns_, rows, dim, s_.w_uv.data(), v_columns_, num_keys, v_columns_,
                 kv_lora_rank_);
  }

  // Adds the first num_keys keys of the tile to the rows [first, first + count).
  void attend_tile(const float* q, int64_t q_stride, int64_t head_dim, int64_t first, int64_t count, int64_t num_keys) {
    float* scores = s_.scores.data() + first * kPrefillTile;
    float* acc = s_.acc.data() + first * v_columns_;
    std::fill_n(scores, count * kPrefillTile, 0.0f);
    multiply_add(scores, kPrefillTile, q, q_stride, s_.keys.data(), kPrefillTile, count, kPrefillTile, head_dim);
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * kPrefillTile;
      float& total_max = s_.max[static_cast<size_t>(first + i)];
      float& total_sum = s_.sum[static_cast<size_t>(first + i)];
      float max = total_max;
      for (int64_t s = 0; s < num_keys; ++s) max = std::max(max, row[s] *= scale_);
      float sum = 0;
      for (int64_t s = 0; s < num_keys; ++s) sum += row[s] = std::exp(row[s] - max);
      const float keep = std::exp(total_max - max);
      total_sum = total_sum * keep + sum;
      total_max = max;
      for (int64_t d = 0; d < v_columns_; ++d) acc[i * v_columns_ + d] *= keep;
    }
    multiply_add(acc, v_columns_, scores, kPrefillTile, s_.values.data(), v_columns_, count, v_columns_, num_keys);
  }

  PrefillScratch& s_;
  Tensor latents_;
  int64_t kv_lora_rank_, nope_, v_dim_, v_columns_;
  float scale_;
};

}  // namespace

void CpuOps::mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                       const ForwardBatch& batch) {
  const int64_t kv_lora_rank = norm_weight.size(0), rope_dim = kv_a.size(1) - kv_lora_rank;
  for (int64_t t = 0; t < kv_a.size(0); ++t) {
    float* row = kv_a.row<float>(t);
    cpu::norm_row(row, row, norm_weight.data<float>(), kv_lora_rank, eps);
    cpu::rotate_pairs(row + kv_lora_rank, cos.row<float>(t), sin.row<float>(t), rope_dim);
    cpu::store_latent(latents, batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[t]),
                      batch.positions.data<int32_t>()[t], row, kv_lora_rank, rope_dim);
  }
}

void CpuOps::mla_decode(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                        float scale) {
  const int64_t num_heads = q_latent.size(1), kv_lora_rank = q_latent.size(2), rope_dim = q_rope.size(2);
  const int64_t groups = (num_heads + kHeadGroup - 1) / kHeadGroup;
  int64_t longest = 0;
  for (int64_t t = 0; t < batch.num_decode_tokens; ++t)
    longest = std::max<int64_t>(longest, batch.positions.data<int32_t>()[t]);
  const int64_t grain = grain_for(2 * (longest + 1) * (kv_lora_rank + rope_dim) * kHeadGroup);
  pool_.parallel_for(batch.num_decode_tokens * groups, grain, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scratch;  // these grow once
    thread_local Partial parts[kHeadGroup];
    scratch.resize(static_cast<size_t>(kBlockSize * (kv_lora_rank + rope_dim)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / groups, first_head = i % groups * kHeadGroup;
      const int64_t heads = std::min(kHeadGroup, num_heads - first_head);
      const int64_t length = batch.positions.data<int32_t>()[t] + 1;
      const int32_t* block_table = batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[t]);
      const float* q = q_latent.row<float>(t) + first_head * q_latent.stride(1);
      const float* qr = q_rope.row<float>(t) + first_head * q_rope.stride(1);
      float* total = out.row<float>(t) + first_head * out.stride(1);
      float total_max[kHeadGroup], total_sum[kHeadGroup];
      for (int64_t h = 0; h < heads; ++h) {
        total_max[h] = kNothing;
        total_sum[h] = 0;
        std::fill_n(total + h * out.stride(1), kv_lora_rank, 0.0f);
        parts[h].scores.resize(kMaxKvPiece);
      }
      // Calls body(rows, first position, count) for each block of the piece.
      const auto for_blocks = [&](int64_t piece, int64_t stop, auto&& body) {
        for (int64_t s = piece; s < stop; s += kBlockSize) {
          const int64_t block_end = std::min(s + kBlockSize, stop);
          body(cpu::read_latents(scratch.data(), latents, block_table, s, block_end, kv_lora_rank, rope_dim), s,
               block_end - s);
        }
      };
      for (int64_t piece = 0; piece < length; piece = kv_piece_end(piece)) {
        const int64_t stop = std::min(kv_piece_end(piece), length);
        for (int64_t h = 0; h < heads; ++h) {
          parts[h].max = kNothing;
          parts[h].sum = 0;
          parts[h].acc.assign(static_cast<size_t>(kv_lora_rank), 0.0f);
        }
        for_blocks(piece, stop, [&](const float* rows, int64_t s, int64_t n) {
          for (int64_t h = 0; h < heads; ++h)
            parts[h].max = score_rows(parts[h].scores.data() + (s - piece), parts[h].max, q + h * q_latent.stride(1),
                                      qr + h * q_rope.stride(1), rows, n, kv_lora_rank, rope_dim, scale);
        });
        for_blocks(piece, stop, [&](const float* rows, int64_t s, int64_t n) {
          for (int64_t h = 0; h < heads; ++h)
            parts[h].sum = accumulate_rows(parts[h].acc.data(), parts[h].sum, parts[h].scores.data() + (s - piece),
                                           parts[h].max, rows, n, kv_lora_rank, rope_dim);
        });
        for (int64_t h = 0; h < heads; ++h)
          combine(total + h * out.stride(1), total_max[h], total_sum[h], parts[h], kv_lora_rank);
      }
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t k = 0; k < kv_lora_rank; ++k) total[h * out.stride(1) + k] /= total_sum[h];
    }
  });
}

void CpuOps::mla_prefill(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                         const ForwardBatch& batch, float scale) {
  const int64_t num_heads = q.size(1), head_dim = q.size(2), first_sequence = batch.num_decode_sequences;
  const int32_t* starts = batch.query_starts.data<int32_t>();
  pool_.parallel_for((batch.num_sequences() - first_sequence) * num_heads, 1, [&](int64_t begin, int64_t end) {
    thread_local PrefillScratch scratch;  // grows once
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sequence = first_sequence + i / num_heads, head = i % num_heads;
      const int64_t first = starts[sequence], num_rows = starts[sequence + 1] - first;
      if (num_rows == 0) continue;
      const int64_t row = first - batch.num_decode_tokens;
      PrefillHead(scratch, latents, k_up, v_up, head, num_heads, scale)
          .attend(out.row<float>(row) + head * out.stride(1), out.stride(0), q.row<float>(row) + head * q.stride(1),
                  q.stride(0), head_dim, num_rows, batch.positions.data<int32_t>()[first],
                  batch.block_tables.row<int32_t>(sequence));
    }
  });
}

}  // namespace longcat
