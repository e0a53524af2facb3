// MLA over the paged latent cache: store, absorbed decode, materialised prefill. These are plain kernels. Attention of
// the published shape runs on tensor cores (mla_decode.cu, mla_prefill.cu), with an order of additions of its own.
//
// Decode is bound by the latent rows it reads: 1,152 bytes per position in bf16. All heads share a row; here each group
// of 8 heads reads it, mostly from L2. A block takes one token, 8 heads and one piece of the history, at a fixed
// absolute position:
// - A warp computes the scores of a position: it loads each latent value once for all 8 heads.
// - The block computes exponentials.
// - A thread computes the weighted sum of one latent value for all 8 heads.
// Partial results (maximum, sum, kv_lora_rank values) go to the workspace. A second kernel combines them in ascending
// order. Where the workspace is too small for all pieces of all tokens, a block takes its token's pieces in turn, with
// the same additions. Shared memory: 8 x 576 query values and 8 scores per position of a piece, 23 to 82 KiB.
//
// Prefill is bound by arithmetic. A block takes 64 prompt rows of one head. For each 64 positions it computes keys and
// values from the latents (16.8 MFLOP of plain multiply-adds), then attends to them. Shared memory for 192 + 128: keys
// 48, values 32, scores 16, sums 32 KiB.
#include <algorithm>
#include <cmath>
#include <limits>

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

constexpr int64_t kHeadGroup = 8;  // number of heads per decode block

// --- store ---------------------------------------------------------------------------------------------------------

struct MlaStore {
  static constexpr int kThreads = 256;
  LatentView latents;
  View kv_a;                 // [num_tokens, kv_lora_rank + rope]
  const float* norm_weight;  // [kv_lora_rank] f32
  float eps;
  const float* cos;             // [num_tokens, rope / 2] f32
  const float* sin;             // [num_tokens, rope / 2] f32
  const int32_t* positions;     // [num_tokens] i32
  const int32_t* sequence_idx;  // [num_tokens] i32
  const int32_t* block_tables;  // [num_sequences, max_blocks] i32
  int64_t block_table_stride;   // [elements]
  bool wide;

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
        block_table_stride(batch.block_tables.stride(0)),
        wide(gpu::is_wide(kv_a, kv_a_.size(1)) && gpu::is_wide(latents.data, latents.row_bytes, 1) &&
             latents.block_bytes % 16 == 0) {}

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index, kv_lora = latents.kv_lora_rank, half = latents.rope_dim / 2;
    float* values = block.shared<float>();
    gpu::for_each_values(block, kv_lora + 2 * half, wide, [&](auto count, int64_t k) {
      gpu::set_values(values + k, gpu::get_values<count()>(kv_a, t * kv_a.stride0 + k));
    });
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
    View to;
    to.data = row;
    to.dtype = latents.dtype;
    gpu::for_each_values(block, kv_lora + 2 * half, wide,
                         [&](auto count, int64_t k) { gpu::set_values(to, k, gpu::get_values<count()>(values + k)); });
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

// One block per token for its latent, and one for the norm of its q_a.
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

// Partial results of pieces. A slot holds the maximum, the sum of exponentials, then kv_lora_rank values.
struct Partials {
  float* memory;  // [tokens, num_heads, num_slots, kv_lora_rank + 2] f32
  int64_t num_heads, kv_lora_rank;
  int64_t num_slots;  // per token and head: one per piece, or one for the sum so far

  LC_HD int64_t size() const { return kv_lora_rank + 2; }
  LC_HD float* slot(int64_t token, int64_t head, int64_t slot_idx) const {
    return memory + ((token * num_heads + head) * num_slots + slot_idx) * size();
  }
};

// One step of the sum over pieces. Every compilation rounds it alike, so both ways of DecodePiece give the same bits.
LC_HD float add_piece(float sum, float keep, float value, float take) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(sum, keep, __fmul_rn(value, take));
#else
  return sum * keep + value * take;
#endif
}

// What the tokens of a launch attend to: all positions up to their own, or a list of topk positions.
struct Attended {
  const int32_t* positions;  // [num_tokens] i32
  const int32_t* selected;   // [num_tokens, stride] i32; null: no token has a list
  int64_t stride, topk;      // [elements]; tokens from position topk on have a list
  bool only_selecting;       // other tokens attend to nothing

  LC_HD bool selects(int64_t t) const { return selected && positions[t] >= topk; }
  LC_HD int64_t length(int64_t t) const { return selects(t) ? topk : only_selecting ? 0 : positions[t] + 1; }
  LC_HD int64_t position(int64_t t, int64_t index) const { return selects(t) ? selected[t * stride + index] : index; }
};

// A block takes a token and a group of heads. It computes one piece for DecodeCombine, or with `in_turn` all pieces in
// ascending order. kSelects: tokens may have lists.
template <DType kDType, bool kSelects>
struct DecodePiece {
  static constexpr int kThreads = 256;
  Attended attended;
  Partials partials;
  LatentView latents;
  // [num_decode_tokens, num_heads, kv_lora_rank] for out and q_latent; [.., .., rope] for q_rope
  View out, q_latent, q_rope;
  const int32_t* sequence_idx;              // [num_tokens] i32
  const int32_t* block_tables;              // [num_sequences, max_blocks] i32
  int64_t block_table_stride;               // [elements]
  int64_t first_token, num_pieces, groups;  // groups: of heads
  bool in_turn;
  float scale;

  // Size of the shared memory [bytes]. largest_piece: positions of the largest piece in use.
  static int64_t shared_bytes(int64_t dim, int64_t largest_piece) { return 4 * kHeadGroup * (dim + largest_piece + 4); }

  LC_HD void operator()(const Block& block) const {
    const int64_t slots = in_turn ? 1 : num_pieces;
    const int64_t first_piece = block.index % slots, group = block.index / slots % groups;
    const int64_t token = block.index / slots / groups, t = first_token + token;
    const int64_t length = attended.length(t), kv_lora = latents.kv_lora_rank, dim = kv_lora + latents.rope_dim;
    if (kv_piece_begin(first_piece) >= length) return;
    const int64_t first_head = group * kHeadGroup;
    const int64_t heads = partials.num_heads - first_head < kHeadGroup ? partials.num_heads - first_head : kHeadGroup;
    const int32_t* block_table = block_tables + sequence_idx[t] * block_table_stride;
    float* query = block.shared<float>();     // [kHeadGroup, dim]
    float* state = query + kHeadGroup * dim;  // [kHeadGroup, 4] per head: maximum, sum, keep, take
    float* scores = state + 4 * kHeadGroup;   // [positions, kHeadGroup]
    block.for_each(kHeadGroup * dim, [&](int64_t i) {
      const int64_t h = i / dim, k = i % dim, head = first_head + h;
      query[i] = h >= heads    ? 0.0f
                 : k < kv_lora ? q_latent.get(t * q_latent.stride0 + head * q_latent.stride1 + k)
                               : q_rope.get(t * q_rope.stride0 + head * q_rope.stride1 + k - kv_lora);
    });
    const int64_t last_piece = in_turn ? num_pieces : first_piece + 1;
    for (int64_t piece = first_piece; piece < last_piece && kv_piece_begin(piece) < length; ++piece) {
      const int64_t begin = kv_piece_begin(piece), stop = kv_piece_end(begin) < length ? kv_piece_end(begin) : length;
      attend(block, query, scores, state, block_table, t, begin, stop - begin, heads,
             [&](int64_t h) { return partials.slot(token, first_head + h, in_turn ? 0 : piece); });
    }
    if (!in_turn) return;
    block.for_each(heads * kv_lora, [&](int64_t i) {
      const int64_t head = first_head + i / kv_lora, k = i % kv_lora;
      const float* total = partials.slot(token, head, 0);
      out.set(t * out.stride0 + head * out.stride1 + k, total[2 + k] / total[1]);
    });
  }

  // Computes one piece into slot_of(head of the group): alone, or added to the sum of the pieces before.
  template <class SlotOf>
  LC_HD void attend(const Block& block, const float* query, float* scores, float* state, const int32_t* block_table,
                    int64_t t, int64_t begin, int64_t n, int64_t heads, const SlotOf& slot_of) const {
    const int64_t kv_lora = latents.kv_lora_rank, dim = kv_lora + latents.rope_dim;
    const auto row_at = [&](int64_t index) {
      return latents.row(block_table, kSelects ? attended.position(t, index) : index);
    };
    block.multi_dots<kHeadGroup>(
        n, dim, heads, [&](int64_t s) { return row_at(begin + s); },
        [&](const unsigned char* row, int64_t k) { return latents.get_as<kDType>(row, k); },
        [&](int64_t h, int64_t k) { return query[h * dim + k]; },
        [&](int64_t s, int64_t h, float sum) { scores[s * kHeadGroup + h] = sum * scale; });
    block.reduce_rows<kThreads>(
        heads, n, Block::minus_infinity(), [&](int64_t h, int64_t s) { return scores[s * kHeadGroup + h]; },
        [](float a, float b) { return a > b ? a : b; }, [&](int64_t h, float max) { state[4 * h] = max; });
    block.for_each(n * kHeadGroup, [&](int64_t i) {
      const int64_t h = i % kHeadGroup;
      if (h < heads) scores[i] = expf(scores[i] - state[4 * h]);
    });
    block.reduce_rows<kThreads>(
        heads, n, 0.0f, [&](int64_t h, int64_t s) { return scores[s * kHeadGroup + h]; },
        [](float a, float b) { return a + b; }, [&](int64_t h, float sum) { state[4 * h + 1] = sum; });
    const bool adds = in_turn && begin > 0;
    block.for_each(heads, [&](int64_t h) {
      float* slot = slot_of(h);
      const float max = state[4 * h], sum = state[4 * h + 1];
      const float total_max = adds && slot[0] > max ? slot[0] : max;
      const float keep = adds ? expf(slot[0] - total_max) : 0.0f, take = expf(max - total_max);
      slot[1] = in_turn ? add_piece(adds ? slot[1] : 0.0f, keep, sum, take) : sum;
      slot[0] = total_max;
      state[4 * h + 2] = keep;
      state[4 * h + 3] = take;
    });
#ifdef __CUDA_ARCH__
    constexpr int64_t kSums = kHeadGroup;  // a constant, so that the sums stay in registers
#else
    const int64_t kSums = heads;
#endif
    block.for_each(kv_lora, [&](int64_t k) {
      float acc[kHeadGroup] = {};
      for (int64_t first = 0; first < n; first += kBlockSize) {  // rows of a cache block are contiguous
        const unsigned char* row = kSelects ? nullptr : row_at(begin + first);
        const int64_t count = n - first < kBlockSize ? n - first : kBlockSize;
#ifdef __CUDA_ARCH__
#pragma unroll 8
#endif
        for (int64_t s = 0; s < count; ++s) {
          const unsigned char* from = kSelects ? row_at(begin + first + s) : row + s * latents.row_bytes;
          const float value = latents.get_as<kDType>(from, k);
          const float* weights = scores + (first + s) * kHeadGroup;
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
          for (int64_t h = 0; h < kSums; ++h) acc[h] += weights[h] * value;
        }
      }
      for (int64_t h = 0; h < heads; ++h) {
        float* to = slot_of(h) + 2 + k;
        *to = in_turn ? add_piece(adds ? *to : 0.0f, state[4 * h + 2], acc[h], state[4 * h + 3]) : acc[h];
      }
    });
  }
};

// Adds the pieces of one token and head in ascending order.
struct DecodeCombine {
  static constexpr int kThreads = 256;
  Attended attended;
  Partials partials;
  View out;  // [num_decode_tokens, num_heads, kv_lora_rank]
  int64_t first_token;

  LC_HD void operator()(const Block& block) const {
    const int64_t head = block.index % partials.num_heads, token = block.index / partials.num_heads;
    const int64_t t = first_token + token, kv_lora = partials.kv_lora_rank, length = attended.length(t);
    if (length == 0) return;
    int64_t count = 0;
    while (count < partials.num_slots && kv_piece_begin(count) < length) ++count;
    float* max = block.shared<float>();  // [num_slots] each
    float* sum = max + partials.num_slots;
    float* total_max = sum + partials.num_slots;  // of the pieces up to this one
    float* keep = total_max + partials.num_slots;
    float* take = keep + partials.num_slots;
    block.for_each(count, [&](int64_t piece) {
      max[piece] = partials.slot(token, head, piece)[0];
      sum[piece] = partials.slot(token, head, piece)[1];
    });
    block.for_each(1, [&](int64_t) {
      total_max[0] = max[0];
      for (int64_t piece = 1; piece < count; ++piece)
        total_max[piece] = total_max[piece - 1] > max[piece] ? total_max[piece - 1] : max[piece];
    });
    block.for_each(count, [&](int64_t piece) {
      keep[piece] = piece == 0 ? 0.0f : expf(total_max[piece - 1] - total_max[piece]);
      take[piece] = expf(max[piece] - total_max[piece]);
    });
    block.for_each(kv_lora, [&](int64_t k) {
      float acc = 0, total = 0;
      const float* value = partials.slot(token, head, 0) + 2 + k;
#ifdef __CUDA_ARCH__
#pragma unroll 8
#endif
      for (int64_t piece = 0; piece < count; ++piece) {
        acc = add_piece(acc, keep[piece], value[piece * partials.size()], take[piece]);
        total = add_piece(total, keep[piece], sum[piece], take[piece]);
      }
      out.set(t * out.stride0 + head * out.stride1 + k, acc / total);
    });
  }
};

// --- materialised --------------------------------------------------------------------------------------------------

struct Prefill {
  static constexpr int kThreads = 256;
  View out, q;  // [num_rows, num_heads, v_head_dim]; [num_rows, num_heads, nope + rope]
  LatentView latents;
  Matrix k_up, v_up;            // [num_heads * kv_lora_rank, nope]; [num_heads * v_head_dim, kv_lora_rank]
  const int32_t* positions;     // [num_tokens] i32
  const int32_t* sequence_idx;  // [num_tokens] i32
  const int32_t* query_starts;  // [num_sequences + 1] i32
  const int32_t* block_tables;  // [num_sequences, max_blocks] i32
  int64_t block_table_stride;   // [elements]
  int64_t first_row;            // row of the first prompt token in the batch
  int64_t num_rows, num_heads, tile_rows;
  int64_t end_position;  // rows from this position on are left out
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

  // The rows of a tile may belong to several chunks. The rows of each chunk are computed separately.
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
      const int64_t left = end_position - positions[first_row + row], count = left < stop - row ? left : stop - row;
      if (count > 0) attend(block, s, head, row, count);
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

  // Attends to keys [0, num_keys) of a tile. Row i sees the keys up to offset + i; other keys and values are not read.
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

// The launches depend on the number of tokens and their context bucket only, never on the longest context of a request.
template <class Kernel>
void decode(GpuDevice& device, const Buffer& workspace, Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents,
            Tensor selected, const ForwardBatch& batch, const AbsorbedRows& rows, float scale) {
  const int64_t num_heads = q_latent.size(1), kv_lora_rank = q_latent.size(2), rope_dim = q_rope.size(2);
  const int64_t groups = (num_heads + kHeadGroup - 1) / kHeadGroup, context = rows.context(batch);
  LC_CHECK(context > 0 && rows.count > 0, "context ", context);
  const int64_t num_pieces = num_kv_pieces(context);
  const int64_t slot_bytes = num_heads * (kv_lora_rank + 2) * 4;  // [bytes] per token and slot
  // A batch too large for the workspace has enough tokens to fill the device without blocks per piece.
  const bool in_turn = rows.count * num_pieces * slot_bytes > workspace.bytes();
  const Partials partials{.memory = static_cast<float*>(workspace.data()),
                          .num_heads = num_heads,
                          .kv_lora_rank = kv_lora_rank,
                          .num_slots = in_turn ? 1 : num_pieces};
  const int64_t tokens = std::min(rows.count, workspace.bytes() / (partials.num_slots * slot_bytes));
  LC_CHECK(tokens > 0, "workspace of ", workspace.bytes(), " bytes");
  const int64_t shared_bytes = Kernel::shared_bytes(kv_lora_rank + rope_dim, kv_piece_size(context - 1));
  const Attended attended{.positions = batch.positions.data<int32_t>() + rows.first,
                          .selected = rows.topk > 0 ? selected.data<int32_t>() : nullptr,
                          .stride = rows.topk > 0 ? selected.stride(0) : 0,
                          .topk = rows.topk,
                          .only_selecting = rows.only_selecting};
  for (int64_t first = 0; first < rows.count; first += tokens) {
    const int64_t count = std::min(tokens, rows.count - first);
    gpu::launch(device, count * groups * partials.num_slots, shared_bytes,
                Kernel{.attended = attended,
                       .partials = partials,
                       .latents = LatentView(latents, kv_lora_rank, rope_dim),
                       .out = View(out),
                       .q_latent = View(q_latent),
                       .q_rope = View(q_rope),
                       .sequence_idx = batch.sequence_idx.data<int32_t>() + rows.first,
                       .block_tables = batch.block_tables.data<int32_t>(),
                       .block_table_stride = batch.block_tables.stride(0),
                       .first_token = first,
                       .num_pieces = num_pieces,
                       .groups = groups,
                       .in_turn = in_turn,
                       .scale = scale});
    if (!in_turn)
      gpu::launch(device, count * num_heads, 4 * 5 * num_pieces,
                  DecodeCombine{.attended = attended, .partials = partials, .out = View(out), .first_token = first});
  }
}

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

void CudaOps::attend_absorbed(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                              const ForwardBatch& batch, const AbsorbedRows& rows, float scale) {
  if (attend_on_tensor_cores(out, q_latent, q_rope, latents, selected, batch, rows, scale)) return;
  const auto run = [&](auto dense, auto sparse) {
    const auto decode = rows.topk > 0 ? sparse : dense;
    decode(*device_, workspace(), out, q_latent, q_rope, latents, selected, batch, rows, scale);
  };
  switch (latents.dtype()) {
    case DType::f8_e4m3:
      return run(decode<DecodePiece<DType::f8_e4m3, false>>, decode<DecodePiece<DType::f8_e4m3, true>>);
    case DType::bf16:
      return run(decode<DecodePiece<DType::bf16, false>>, decode<DecodePiece<DType::bf16, true>>);
    default:
      return run(decode<DecodePiece<DType::f32, false>>, decode<DecodePiece<DType::f32, true>>);
  }
}

void CudaOps::mla_decode(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                         float scale) {
  attend_absorbed(out, q_latent, q_rope, latents, {}, batch, AbsorbedRows::generated(batch, 0), scale);
}

void CudaOps::mla_decode_selected(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                                  const ForwardBatch& batch, float scale) {
  const AbsorbedRows rows = AbsorbedRows::generated(batch, selected.size(1));
  attend_absorbed(out, q_latent, q_rope, latents, selected, batch, rows, scale);
}

void CudaOps::mla_prefill(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                          const ForwardBatch& batch, float scale) {
  attend_materialised(out, q, latents, k_up, v_up, batch, scale, std::numeric_limits<int64_t>::max());
}

// The host does not know which rows select. So all rows of `out` are made from the absorbed result, and then those that
// attend to all positions are written again.
void CudaOps::mla_prefill_selected(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                                   Tensor selected, Tensor q_latent, Tensor latent_out, const ForwardBatch& batch,
                                   float scale) {
  const int64_t topk = selected.size(1), nope = k_up.in_features;
  linear_per_head(q_latent, q.slice(2, 0, nope), k_up);
  attend_absorbed(latent_out, q_latent, q.slice(2, nope, q.size(2)), latents, selected, batch,
                  AbsorbedRows::prompt(batch, topk), scale);
  linear_per_head(out, latent_out, v_up);
  attend_materialised(out, q, latents, k_up, v_up, batch, scale, topk);
}

void CudaOps::attend_materialised(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                                  const ForwardBatch& batch, float scale, int64_t end) {
  if (prefill_on_tensor_cores(out, q, latents, k_up, v_up, batch, scale, end)) return;
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
                 .end_position = end,
                 .scale = scale};
  if (kernel.shared_bytes() + Prefill::kThreads * gpu::kReduceSlot > device_->shared_bytes())
    kernel.tile_rows = 16;  // changes no row's result
  gpu::launch(*device_, (q.size(0) + kernel.tile_rows - 1) / kernel.tile_rows * num_heads, kernel.shared_bytes(),
              kernel);
}

}  // namespace longcat
