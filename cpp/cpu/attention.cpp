// MLA over the paged latent cache, absorbed form: 1 latent row of kv_lora_rank + rope values a token, shared by all
// heads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/rope.h"
#include "cpu/rows.h"
#include "cpu/vec.h"

namespace longcat {

namespace {

// Partial result of one head over one piece of the history, before normalisation.
struct Partial {
  float max;   // largest score of the piece
  float sum;   // sum of exp(score - max)
  float* acc;  // [kv_lora_rank] sum of exp(score - max) * c
};

template <class T>
LC_INLINE void attend_piece(Partial& part, float* scores, const float* q_latent, const float* q_rope, const T* latents,
                            const int32_t* block_table, int64_t begin, int64_t end, int64_t kv_lora_rank,
                            int64_t rope_dim, float scale) {
  const int64_t latent_dim = kv_lora_rank + rope_dim;
  const auto latent_of = [&](int64_t position) { return latents + slot_of(block_table, position) * latent_dim; };
  part.max = -std::numeric_limits<float>::infinity();
  for (int64_t s = begin; s < end; ++s) {
    const T* latent = latent_of(s);
    const float score =
        (vec::dot(q_latent, latent, kv_lora_rank) + vec::dot(q_rope, latent + kv_lora_rank, rope_dim)) * scale;
    scores[s - begin] = score;
    part.max = std::max(part.max, score);
  }
  part.sum = 0;
  std::fill_n(part.acc, kv_lora_rank, 0.0f);
  for (int64_t s = begin; s < end; ++s) {
    const float weight = std::exp(scores[s - begin] - part.max);
    part.sum += weight;
    vec::axpy(part.acc, weight, latent_of(s), kv_lora_rank);
  }
}

LC_CLONES void attend_piece_f32(Partial& part, float* scores, const float* q_latent, const float* q_rope,
                                const float* latents, const int32_t* block_table, int64_t begin, int64_t end,
                                int64_t kv_lora_rank, int64_t rope_dim, float scale) {
  attend_piece(part, scores, q_latent, q_rope, latents, block_table, begin, end, kv_lora_rank, rope_dim, scale);
}

LC_CLONES void attend_piece_bf16(Partial& part, float* scores, const float* q_latent, const float* q_rope,
                                 const bf16* latents, const int32_t* block_table, int64_t begin, int64_t end,
                                 int64_t kv_lora_rank, int64_t rope_dim, float scale) {
  attend_piece(part, scores, q_latent, q_rope, latents, block_table, begin, end, kv_lora_rank, rope_dim, scale);
}

// out = total * factor + piece * piece_factor, the two rescaled to their common maximum. NaN scores stay NaN.
void combine(float* out, float& total_max, float& total_sum, const Partial& piece, int64_t dim) {
  const float max = std::max(total_max, piece.max);
  const float keep = std::exp(total_max - max), take = std::exp(piece.max - max);
  total_sum = total_sum * keep + piece.sum * take;
  for (int64_t k = 0; k < dim; ++k) out[k] = out[k] * keep + piece.acc[k] * take;
  total_max = max;
}

}  // namespace

void CpuOps::mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                       const ForwardBatch& batch) {
  const int64_t kv_lora_rank = norm_weight.size(0), rope_dim = kv_a.size(1) - kv_lora_rank;
  for (int64_t t = 0; t < kv_a.size(0); ++t) {
    float* row = kv_a.row<float>(t);
    cpu::norm_row(row, row, norm_weight.data<float>(), kv_lora_rank, eps);
    cpu::rotate_pairs(row + kv_lora_rank, cos.row<float>(t), sin.row<float>(t), rope_dim);

    const int64_t slot = slot_of(batch, batch.sequence_idx.data<int32_t>()[t], batch.positions.data<int32_t>()[t]);
    if (latents.dtype() == DType::bf16) {
      bf16* stored = latents.row<bf16>(slot);
      for (int64_t k = 0; k < kv_a.size(1); ++k) stored[k] = to_bf16(row[k]);
    } else {
      std::copy_n(row, kv_a.size(1), latents.row<float>(slot));
    }
  }
}

void CpuOps::mla_attention(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                           float scale) {
  const int64_t num_heads = q_latent.size(1), kv_lora_rank = q_latent.size(2), rope_dim = q_rope.size(2);
  LC_CHECK(latents.dtype() == DType::f32 || latents.dtype() == DType::bf16, "latents are ", name_of(latents.dtype()));
  int64_t longest = 0;
  for (int64_t t = 0; t < batch.num_tokens(); ++t)
    longest = std::max<int64_t>(longest, batch.positions.data<int32_t>()[t]);
  const int64_t grain = grain_for(2 * (longest + 1) * latents.size(1));
  pool_.parallel_for(batch.num_tokens() * num_heads, grain, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scores, acc;  // grow once
    scores.resize(kMaxKvPiece);
    acc.resize(static_cast<size_t>(kv_lora_rank));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i / num_heads, head = i % num_heads;
      const int64_t length = batch.positions.data<int32_t>()[t] + 1;
      const int32_t* block_table = batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[t]);
      const float* q = q_latent.row<float>(t) + head * q_latent.stride(1);
      const float* qr = q_rope.row<float>(t) + head * q_rope.stride(1);
      float* total = out.row<float>(t) + head * out.stride(1);
      float total_max = -std::numeric_limits<float>::infinity(), total_sum = 0;
      std::fill_n(total, kv_lora_rank, 0.0f);
      for (int64_t s = 0; s < length; s = kv_piece_end(s)) {
        const int64_t stop = std::min(kv_piece_end(s), length);
        Partial part{.max = 0, .sum = 0, .acc = acc.data()};
        if (latents.dtype() == DType::bf16) {
          attend_piece_bf16(part, scores.data(), q, qr, latents.data<bf16>(), block_table, s, stop, kv_lora_rank,
                            rope_dim, scale);
        } else {
          attend_piece_f32(part, scores.data(), q, qr, latents.data<float>(), block_table, s, stop, kv_lora_rank,
                           rope_dim, scale);
        }
        combine(total, total_max, total_sum, part, kv_lora_rank);
      }
      for (int64_t k = 0; k < kv_lora_rank; ++k) total[k] /= total_sum;
    }
  });
}

}  // namespace longcat
