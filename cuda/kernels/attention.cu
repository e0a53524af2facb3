// MLA over the paged latent cache: store, absorbed decode, materialised prefill. First rung: plain kernels whose order
// of additions is the one that faster ones must keep.
//
// Decode is bound by the latent rows it reads (1,152 bytes a position in bf16, once for all heads at best; here once a
// group of 8 heads, the rest from L2). A block takes one token, 8 heads and one piece of the history of fixed absolute
// position: scores by a warp a dot product, then exponentials, then weighted sums with a thread a latent value. Partial
// results (maximum, sum, kv_lora values) go to the workspace, and a second kernel combines them in ascending order. How
// many pieces run at once depends on the workspace, the bits do not. Shared memory: 8 x 576 query values, 8 x 2,048
// scores: 82 KiB.
//
// Prefill is bound by arithmetic: a block takes 64 prompt rows of one head, and for each 64 positions makes keys and
// values from the latents (16.8 MFLOP of plain multiply-adds) before it attends. Shared memory for 192 + 128: keys 48,
// values 32, scores 16, sums 32 KiB. Tensor cores are the next rung.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/attention.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/elementwise.h"
#include "cuda/kernels/matrix.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::Matrix;
using gpu::View;

constexpr int64_t kHeadGroup = 8;  // heads of a decode block

// --- store ---------------------------------------------------------------------------------------------------------

struct MlaStore {
  static constexpr int kThreads = 256;
  LatentView latents;
  View kv_a;
  const float* norm_weight;
  float eps;
  const float* cos;
  const float* sin;
  const int32_t* positions;
  const int32_t* sequence_idx;
  const int32_t* block_tables;
  int64_t block_table_stride;

  MlaStore(Tensor latents_, Tensor kv_a_, Tensor norm_weight_, float eps_, Tensor cos_, Tensor sin_,
           const ForwardBatch& batch)
      : latents(latents_, norm_weight_.size(0), kv_a_.size(1) - norm_weight_.size(0)),
        kv_a(kv_a_),
        norm_weight(norm_weight_.data<float>()),
        eps(eps_),
        cos(cos_.data<float>()),
        sin(sin_.data<float>()),
        positions(batch.positions.data<int32_t>()),
        sequence_idx(batch.sequence_idx.data<int32_t>()),
        block_tables(batch.block_tables.data<int32_t>()),
        block_table_stride(batch.block_tables.stride(0)) {}

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index, kv_lora = latents.kv_lora_rank, half = latents.rope_dim / 2;
    float* values = block.shared<float>();
    block.for_each(kv_lora + 2 * half, [&](int64_t k) { values[k] = kv_a.get(t * kv_a.stride0 + k); });
    const float squares = block.sum<float>(kv_lora, [&](int64_t k) { return values[k] * values[k]; });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(kv_lora) + eps);
    block.for_each(kv_lora, [&](int64_t k) { values[k] = values[k] * scale * norm_weight[k]; });
    block.for_each(half, [&](int64_t j) {
      float* pair = values + kv_lora + 2 * j;
      const float c = cos[t * half + j], s = sin[t * half + j], even = pair[0], odd = pair[1];
      pair[0] = even * c - odd * s;
      pair[1] = odd * c + even * s;
    });

    unsigned char* row = latents.row(block_tables + sequence_idx[t] * block_table_stride, positions[t]);
    if (latents.dtype == DType::f8_e4m3) return store_fp8(block, row, values);
    block.for_each(kv_lora + 2 * half, [&](int64_t k) {
      if (latents.dtype == DType::bf16) {
        reinterpret_cast<bf16*>(row)[k] = to_bf16(values[k]);
      } else {
        reinterpret_cast<float*>(row)[k] = values[k];
      }
    });
  }

  LC_HD void store_fp8(const Block& block, unsigned char* row, const float* values) const {
    const Fp8Latent layout{latents.kv_lora_rank, latents.rope_dim};
    float* scales = reinterpret_cast<float*>(row + layout.scales_offset());
    for (int64_t g = 0; g < layout.num_groups(); ++g) {
      const int64_t begin = g * Fp8Latent::kGroup;
      const int64_t count =
          layout.kv_lora_rank - begin < Fp8Latent::kGroup ? layout.kv_lora_rank - begin : Fp8Latent::kGroup;
      const float largest = block.reduce(
          count, 0.0f, [&](int64_t k) { return fabsf(values[begin + k]); },
          [](float a, float b) { return b > a ? b : a; });
      const float scale = fp8_scale(largest);
      block.for_each(count, [&](int64_t k) {
        row[begin + k] = to_e4m3(values[begin + k] / scale);
        if (k == 0) scales[g] = scale;
      });
    }
    block.for_each(layout.rope_dim, [&](int64_t k) {
      reinterpret_cast<bf16*>(row + layout.rope_offset())[k] = to_bf16(values[layout.kv_lora_rank + k]);
    });
  }
};

// A block a token for its latent, and one for the norm of its q_a.
struct NormStore {
  static constexpr int kThreads = MlaStore::kThreads;
  static_assert(kThreads == gpu::AddRmsNorm::kThreads);
  MlaStore store;
  gpu::AddRmsNorm norm;
  int64_t num_tokens;

  LC_HD void operator()(const Block& block) const {
    if (block.index < num_tokens) return store(block);
    norm(block.as(block.index - num_tokens));
  }
};

// --- absorbed ------------------------------------------------------------------------------------------------------

// Where the partial results of a round of pieces lie. A partial: maximum, sum of exponentials, then kv_lora values.
struct Partials {
  float* memory;
  int64_t num_heads, kv_lora_rank;
  int64_t num_pieces;  // of a round

  LC_HD int64_t size() const { return kv_lora_rank + 2; }
  LC_HD float* piece(int64_t token, int64_t head, int64_t piece_in_round) const {
    return memory + ((token * num_heads + head) * (num_pieces + 1) + piece_in_round) * size();
  }
  // The running result before this round.
  LC_HD float* total(int64_t token, int64_t head) const { return piece(token, head, num_pieces); }
};

struct DecodePiece {
  static constexpr int kThreads = 256;
  Partials partials;
  LatentView latents;
  View q_latent, q_rope;
  const int32_t* positions;
  const int32_t* sequence_idx;
  const int32_t* block_tables;
  int64_t block_table_stride;
  int64_t first_token, first_piece, groups;
  float scale;

  LC_HD void operator()(const Block& block) const {
    const int64_t piece = block.index % partials.num_pieces, group = block.index / partials.num_pieces % groups;
    const int64_t token = block.index / partials.num_pieces / groups, t = first_token + token;
    const int64_t begin = kv_piece_begin(first_piece + piece), length = positions[t] + 1;
    if (begin >= length) return;
    const int64_t end = kv_piece_end(begin) < length ? kv_piece_end(begin) : length, n = end - begin;
    const int64_t first_head = group * kHeadGroup, kv_lora = latents.kv_lora_rank, rope = latents.rope_dim;
    const int64_t heads = partials.num_heads - first_head < kHeadGroup ? partials.num_heads - first_head : kHeadGroup;
    const int64_t dim = kv_lora + rope;
    const int32_t* block_table = block_tables + sequence_idx[t] * block_table_stride;
    float* query = block.shared<float>();      // [heads, dim]
    float* scores = query + kHeadGroup * dim;  // [heads, kMaxKvPiece]

    block.for_each(heads * dim, [&](int64_t i) {
      const int64_t head = first_head + i / dim, k = i % dim;
      query[i] = k < kv_lora ? q_latent.get(t * q_latent.stride0 + head * q_latent.stride1 + k)
                             : q_rope.get(t * q_rope.stride0 + head * q_rope.stride1 + k - kv_lora);
    });
    block.dots(
        heads * n, dim,
        [&](int64_t i, int64_t k) {
          return query[i / n * dim + k] * latents.get(latents.row(block_table, begin + i % n), k);
        },
        [&](int64_t i, float sum) { scores[i / n * kMaxKvPiece + i % n] = sum * scale; });
    for (int64_t h = 0; h < heads; ++h) {
      float* row = scores + h * kMaxKvPiece;
      const float max = block.max(n, [&](int64_t s) { return row[s]; });
      block.for_each(n, [&](int64_t s) { row[s] = expf(row[s] - max); });
      const float sum = block.sum<float>(n, [&](int64_t s) { return row[s]; });
      float* partial = partials.piece(token, first_head + h, piece);
      block.for_each(1, [&](int64_t) {
        partial[0] = max;
        partial[1] = sum;
      });
    }
    block.for_each(heads * kv_lora, [&](int64_t i) {
      const float* row = scores + i / kv_lora * kMaxKvPiece;
      float acc = 0;
      for (int64_t s = 0; s < n; ++s) acc += row[s] * latents.get(latents.row(block_table, begin + s), i % kv_lora);
      partials.piece(token, first_head + i / kv_lora, piece)[2 + i % kv_lora] = acc;
    });
  }
};

// Adds a round's pieces to the running result in ascending order; the last round normalises into `out`.
struct DecodeCombine {
  static constexpr int kThreads = 128;
  Partials partials;
  View out;
  const int32_t* positions;
  int64_t first_token, first_piece;
  bool last;

  LC_HD void operator()(const Block& block) const {
    const int64_t head = block.index % partials.num_heads, token = block.index / partials.num_heads;
    const int64_t t = first_token + token, kv_lora = partials.kv_lora_rank, length = positions[t] + 1;
    float* total = partials.total(token, head);
    float total_max = first_piece == 0 ? Block::minus_infinity() : total[0];
    float total_sum = first_piece == 0 ? 0.0f : total[1];
    float* acc = block.shared<float>();  // [kv_lora]
    block.for_each(kv_lora, [&](int64_t k) { acc[k] = first_piece == 0 ? 0.0f : total[2 + k]; });
    for (int64_t piece = 0; piece < partials.num_pieces && kv_piece_begin(first_piece + piece) < length; ++piece) {
      const float* partial = partials.piece(token, head, piece);
      const float max = total_max > partial[0] ? total_max : partial[0];
      const float keep = expf(total_max - max), take = expf(partial[0] - max);
      total_sum = total_sum * keep + partial[1] * take;
      total_max = max;
      block.for_each(kv_lora, [&](int64_t k) { acc[k] = acc[k] * keep + partial[2 + k] * take; });
    }
    block.for_each(kv_lora, [&](int64_t k) {
      if (last) {
        out.set(t * out.stride0 + head * out.stride1 + k, acc[k] / total_sum);
        return;
      }
      total[2 + k] = acc[k];
      if (k == 0) {
        total[0] = total_max;
        total[1] = total_sum;
      }
    });
  }
};

// --- materialised --------------------------------------------------------------------------------------------------

struct Prefill {
  static constexpr int kThreads = 256;
  View out, q;
  LatentView latents;
  Matrix k_up, v_up;
  const int32_t* positions;
  const int32_t* sequence_idx;
  const int32_t* query_starts;
  const int32_t* block_tables;
  int64_t block_table_stride;
  int64_t first_row;  // of the prompt tokens in the batch
  int64_t num_rows, num_heads, tile_rows;
  float scale;

  LC_HD int64_t nope() const { return k_up.in_features; }
  LC_HD int64_t head_dim() const { return nope() + latents.rope_dim; }
  LC_HD int64_t v_dim() const { return v_up.out_features / num_heads; }

  struct Shared {
    float *keys, *values;     // [kPrefillTile, head_dim], [kPrefillTile, v_dim]
    float *scores, *acc;      // [tile_rows, kPrefillTile], [tile_rows, v_dim]
    float *max, *sum, *keep;  // [tile_rows]
  };
  int64_t shared_bytes() const {
    return 4 * (kPrefillTile * (head_dim() + v_dim()) + tile_rows * (kPrefillTile + v_dim() + 3));
  }

  // A tile's rows may belong to several chunks: each run of one chunk is computed by itself.
  LC_HD void operator()(const Block& block) const {
    const int64_t head = block.index % num_heads, begin = block.index / num_heads * tile_rows;
    const int64_t end = begin + tile_rows < num_rows ? begin + tile_rows : num_rows;
    Shared s;
    s.keys = block.shared<float>();
    s.values = s.keys + kPrefillTile * head_dim();
    s.scores = s.values + kPrefillTile * v_dim();
    s.acc = s.scores + tile_rows * kPrefillTile;
    s.max = s.acc + tile_rows * v_dim();
    s.sum = s.max + tile_rows;
    s.keep = s.sum + tile_rows;
    for (int64_t row = begin; row < end;) {
      const int64_t chunk_end = query_starts[sequence_idx[first_row + row] + 1] - first_row;
      const int64_t stop = chunk_end < end ? chunk_end : end;
      attend(block, s, head, row, stop - row);
      row = stop;
    }
  }

  LC_HD void attend(const Block& block, const Shared& s, int64_t head, int64_t row, int64_t count) const {
    const int64_t start = positions[first_row + row], stop = start + count, v = v_dim();
    const int32_t* block_table = block_tables + sequence_idx[first_row + row] * block_table_stride;
    block.for_each(count, [&](int64_t i) {
      s.max[i] = Block::minus_infinity();
      s.sum[i] = 0;
    });
    block.for_each(count * v, [&](int64_t i) { s.acc[i] = 0; });
    for (int64_t tile = 0; tile < stop; tile += kPrefillTile) {
      const int64_t num_keys = stop - tile < kPrefillTile ? stop - tile : kPrefillTile;
      materialise(block, s, head, tile, num_keys, block_table);
      attend_tile(block, s, head, row, count, start - tile, num_keys);
    }
    block.for_each(count * v, [&](int64_t i) {
      out.set((row + i / v) * out.stride0 + head * out.stride1 + i % v, s.acc[i] / s.sum[i / v]);
    });
  }

  LC_HD void materialise(const Block& block, const Shared& s, int64_t head, int64_t tile, int64_t num_keys,
                         const int32_t* block_table) const {
    const int64_t kv_lora = latents.kv_lora_rank, dim = head_dim(), v = v_dim();
    block.for_each(num_keys * dim, [&](int64_t i) {
      const unsigned char* latent = latents.row(block_table, tile + i / dim);
      const int64_t d = i % dim;
      float key = 0;
      if (d < nope()) {
        for (int64_t l = 0; l < kv_lora; ++l) key += latents.get(latent, l) * k_up.get(head * kv_lora + l, d);
      } else {
        key = latents.get(latent, kv_lora + d - nope());
      }
      s.keys[i] = key;
    });
    block.for_each(num_keys * v, [&](int64_t i) {
      const unsigned char* latent = latents.row(block_table, tile + i / v);
      float value = 0;
      for (int64_t l = 0; l < kv_lora; ++l) value += latents.get(latent, l) * v_up.get(head * v + i % v, l);
      s.values[i] = value;
    });
  }

  // Keys [0, num_keys) of a tile; row i sees those up to offset + i. What it does not see is not touched.
  LC_HD void attend_tile(const Block& block, const Shared& s, int64_t head, int64_t row, int64_t count, int64_t offset,
                         int64_t num_keys) const {
    const int64_t dim = head_dim(), v = v_dim();
    const auto visible = [&](int64_t i) {
      const int64_t keys = offset + i + 1;
      return keys < 0 ? 0 : keys < num_keys ? keys : num_keys;
    };
    block.for_each(count * num_keys, [&](int64_t i) {
      const int64_t r = i / num_keys, key = i % num_keys;
      if (key >= visible(r)) return;
      const int64_t from = (row + r) * q.stride0 + head * q.stride1;
      float score = 0;
      for (int64_t d = 0; d < dim; ++d) score += q.get(from + d) * s.keys[key * dim + d];
      s.scores[r * kPrefillTile + key] = score * scale;
    });
    block.for_each(count, [&](int64_t i) {
      float* scores = s.scores + i * kPrefillTile;
      float max = s.max[i], sum = 0;
      for (int64_t key = 0; key < visible(i); ++key) max = scores[key] > max ? scores[key] : max;
      for (int64_t key = 0; key < visible(i); ++key) sum += scores[key] = expf(scores[key] - max);
      s.keep[i] = visible(i) > 0 ? expf(s.max[i] - max) : 1.0f;
      s.sum[i] = s.sum[i] * s.keep[i] + sum;
      s.max[i] = max;
    });
    block.for_each(count * v, [&](int64_t i) {
      const int64_t r = i / v;
      float acc = s.acc[i] * s.keep[r];
      for (int64_t key = 0; key < visible(r); ++key)
        acc += s.scores[r * kPrefillTile + key] * s.values[key * v + i % v];
      s.acc[i] = acc;
    });
  }
};

}  // namespace

void CudaOps::mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                        const ForwardBatch& batch) {
  gpu::launch(*device_, kv_a.size(0), 4 * kv_a.size(1), MlaStore(latents, kv_a, norm_weight, eps, cos, sin, batch));
}

void CudaOps::mla_norm_store(Tensor q_a, Tensor q_a_norm, Tensor latents, Tensor kv_a, Tensor kv_a_norm, float eps,
                             Tensor cos, Tensor sin, const ForwardBatch& batch) {
  const int64_t num_tokens = kv_a.size(0);
  gpu::launch(*device_, 2 * num_tokens, 4 * std::max(kv_a.size(1), q_a.size(1)),
              NormStore{.store = MlaStore(latents, kv_a, kv_a_norm, eps, cos, sin, batch),
                        .norm = gpu::AddRmsNorm(q_a, q_a, {}, q_a_norm, eps),
                        .num_tokens = num_tokens});
}

void CudaOps::mla_decode(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                         float scale) {
  const int64_t num_heads = q_latent.size(1), kv_lora_rank = q_latent.size(2), rope_dim = q_rope.size(2);
  const int64_t groups = (num_heads + kHeadGroup - 1) / kHeadGroup;
  const int64_t num_pieces = num_kv_pieces(batch.block_tables.size(1) * kBlockSize);
  // The workspace holds `tokens` x (pieces + 1) partials a head; few tokens run all pieces at once.
  const int64_t token_bytes = num_heads * (kv_lora_rank + 2) * 4;
  const int64_t tokens = std::min(batch.num_decode_tokens, workspace().bytes() / (2 * token_bytes));
  LC_CHECK(tokens > 0, "workspace of ", workspace().bytes(), " bytes");
  const Partials partials{.memory = static_cast<float*>(workspace().data()),
                          .num_heads = num_heads,
                          .kv_lora_rank = kv_lora_rank,
                          .num_pieces = std::min(num_pieces, workspace().bytes() / (tokens * token_bytes) - 1)};
  for (int64_t first = 0; first < batch.num_decode_tokens; first += tokens) {
    const int64_t count = std::min(tokens, batch.num_decode_tokens - first);
    for (int64_t piece = 0; piece < num_pieces; piece += partials.num_pieces) {
      gpu::launch(*device_, count * groups * partials.num_pieces,
                  4 * kHeadGroup * (kv_lora_rank + rope_dim + kMaxKvPiece),
                  DecodePiece{.partials = partials,
                              .latents = LatentView(latents, kv_lora_rank, rope_dim),
                              .q_latent = View(q_latent),
                              .q_rope = View(q_rope),
                              .positions = batch.positions.data<int32_t>(),
                              .sequence_idx = batch.sequence_idx.data<int32_t>(),
                              .block_tables = batch.block_tables.data<int32_t>(),
                              .block_table_stride = batch.block_tables.stride(0),
                              .first_token = first,
                              .first_piece = piece,
                              .groups = groups,
                              .scale = scale});
      gpu::launch(*device_, count * num_heads, 4 * kv_lora_rank,
                  DecodeCombine{.partials = partials,
                                .out = View(out),
                                .positions = batch.positions.data<int32_t>(),
                                .first_token = first,
                                .first_piece = piece,
                                .last = piece + partials.num_pieces >= num_pieces});
    }
  }
}

void CudaOps::mla_prefill(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                          const ForwardBatch& batch, float scale) {
  const int64_t num_heads = q.size(1);
  Prefill kernel{.out = View(out),
                 .q = View(q),
                 .latents = LatentView(latents, v_up.in_features, q.size(2) - k_up.in_features),
                 .k_up = Matrix(k_up),
                 .v_up = Matrix(v_up),
                 .positions = batch.positions.data<int32_t>(),
                 .sequence_idx = batch.sequence_idx.data<int32_t>(),
                 .query_starts = batch.query_starts.data<int32_t>(),
                 .block_tables = batch.block_tables.data<int32_t>(),
                 .block_table_stride = batch.block_tables.stride(0),
                 .first_row = batch.num_decode_tokens,
                 .num_rows = q.size(0),
                 .num_heads = num_heads,
                 .tile_rows = 64,
                 .scale = scale};
  constexpr int64_t kSmallShared = 99 << 10;  // what devices of 8.6, 8.9 and 12.0 give a block
  const int capability = device_->compute_capability();
  if ((capability == 86 || capability == 89 || capability >= 120) &&
      kernel.shared_bytes() + Prefill::kThreads * gpu::kReduceSlot > kSmallShared)
    kernel.tile_rows = 16;  // no row's result depends on it
  gpu::launch(*device_, (q.size(0) + kernel.tile_rows - 1) / kernel.tile_rows * num_heads, kernel.shared_bytes(),
              kernel);
}

}  // namespace longcat
