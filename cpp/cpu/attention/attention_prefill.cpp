// Materialised MLA of prompt tokens. For each head, keys and values of 64 positions at a time are computed from the
// latents, for all rows of the chunk. The rows are the lanes of the scores; in attention.cpp the heads are.
//
// Under dtype bf16, sets that multiply bf16 take all factors as Bf16Pair. Latents and the weights of a head are bf16
// already. Queries, keys, values and the softmax's weights are rounded. Sums are f32.
#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/attention/bf16_kernels.h"
#include "cpu/attention/latents.h"
#include "cpu/attention/softmax_kernels.h"
#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/product_kernels.h"

namespace longcat {

namespace {

using cpu::Bf16Pair;
using cpu::padded_columns;

constexpr int64_t kRowsAtOnce = 128;  // rows of a chunk whose scores fit in the cache

// The buffers of one thread for one head of a chunk. A Factor is what a product reads at once: a float, or two adjacent
// values of the dimension that it sums over. With pairs, that dimension has half as many rows.
template <class Factor>
struct PrefillScratch {
  std::vector<Factor> w_uk;             // [kv_lora, padded(nope)] of the head
  std::vector<Factor> w_uv;             // [kv_lora, padded(v)] of the head, transposed
  std::vector<Factor> queries;          // [blocks of kRowsAtOnce rows][nope + rope, lanes of the block]
  std::vector<float> latents;           // [kPrefillTile, kv_lora + rope]
  std::vector<float> keys, values;      // [kPrefillTile, padded(nope)]; [kPrefillTile, padded(v)]
  std::vector<float> scores;            // [kPrefillTile, lanes]
  std::vector<float> acc;               // [rows, padded(v)]
  std::vector<float> max, sum, keep;    // [rows, padded]
  std::vector<Bf16Pair> rounded_keys;   // keys, values and scores as pairs
  std::vector<Bf16Pair> value_pairs;    // of keys 0 and 1, 2 and 3, ...
  std::vector<Bf16Pair> single_values;  // of keys 0, 2, ..., each with zeros
  std::vector<Bf16Pair> weight_pairs;
};

// One head of one chunk of prompt tokens.
template <class Factor>
class PrefillHead {
  static constexpr bool kPairs = std::is_same_v<Factor, Bf16Pair>;
  static constexpr int64_t kValues = kPairs ? 2 : 1;  // in a Factor

 public:
  PrefillHead(PrefillScratch<Factor>& scratch, Tensor latents, const Weight& k_up, const Weight& v_up, int64_t head,
              int64_t num_heads, int64_t head_dim, float scale)
      : s_(scratch),
        latents_(latents),
        kv_lora_rank_(v_up.in_features),
        nope_(k_up.in_features),
        rope_dim_(head_dim - nope_),
        v_dim_(v_up.out_features / num_heads),
        k_columns_(padded_columns(nope_)),
        v_columns_(padded_columns(v_dim_)),
        scale_(scale) {
    s_.latents.resize(static_cast<size_t>(kPrefillTile * (kv_lora_rank_ + rope_dim_)));
    s_.keys.resize(static_cast<size_t>(kPrefillTile * k_columns_));
    s_.values.resize(static_cast<size_t>(kPrefillTile * v_columns_));
    s_.scores.resize(static_cast<size_t>(kPrefillTile * kRowsAtOnce));
    s_.keep.resize(static_cast<size_t>(kRowsAtOnce));
    s_.w_uk.assign(static_cast<size_t>(kv_lora_rank_ / kValues * k_columns_), Factor{});
    s_.w_uv.assign(static_cast<size_t>(kv_lora_rank_ / kValues * v_columns_), Factor{});
    if constexpr (kPairs) {
      s_.rounded_keys.resize(static_cast<size_t>(kPrefillTile * k_columns_ / 2));
      s_.value_pairs.resize(static_cast<size_t>(kPrefillTile / 2 * v_columns_));
      s_.single_values.resize(static_cast<size_t>(kPrefillTile / 2 * v_columns_));
      s_.weight_pairs.resize(static_cast<size_t>(kPrefillTile / 2 * kRowsAtOnce));
    }
    float* row = s_.latents.data();  // not in use yet
    for (int64_t l = 0; l < kv_lora_rank_; ++l) {
      cpu::read_row(row, k_up, head * kv_lora_rank_ + l);
      for (int64_t d = 0; d < nope_; ++d) put(s_.w_uk.data(), l, k_columns_, d, row[d]);
    }
    for (int64_t d = 0; d < v_dim_; ++d) {
      cpu::read_row(row, v_up, head * v_dim_ + d);
      for (int64_t l = 0; l < kv_lora_rank_; ++l) put(s_.w_uv.data(), l, v_columns_, d, row[l]);
    }
  }

  // out [num_rows, v] and q [num_rows, nope + rope] are the rows of this head; `start` is the position of the first
  // row.
  void attend(float* out, int64_t out_stride, const float* q, int64_t q_stride, int64_t num_rows, int64_t start,
              const int32_t* block_table) {
    const size_t lanes = static_cast<size_t>(padded_columns(num_rows));
    s_.acc.assign(static_cast<size_t>(num_rows * v_columns_), 0.0f);
    s_.max.assign(lanes, cpu::kNothing);
    s_.sum.assign(lanes, 0.0f);
    transpose_queries(q, q_stride, num_rows);
    for (int64_t tile = 0; tile < start + num_rows; tile += kPrefillTile) {
      const int64_t num_keys = std::min(kPrefillTile, start + num_rows - tile);
      materialise(tile, num_keys, block_table);
      for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
        const int64_t rows = std::min(kRowsAtOnce, num_rows - first);
        if (start + first + rows > tile) attend_tile(first, rows, start + first + 1 - tile, num_keys);
      }
    }
    for (int64_t i = 0; i < num_rows; ++i)
      for (int64_t d = 0; d < v_dim_; ++d)
        out[i * out_stride + d] = s_.acc[static_cast<size_t>(i * v_columns_ + d)] / s_.sum[static_cast<size_t>(i)];
  }

 private:
  int64_t head_dim() const { return nope_ + rope_dim_; }

  // matrix [rows, columns] at (row, column) = x, where rows are what products sum over.
  static void put(Factor* matrix, int64_t row, int64_t columns, int64_t column, float x) {
    Factor& factor = matrix[row / kValues * columns + column];
    if constexpr (kPairs) {
      (row % 2 == 0 ? factor.first : factor.second) = to_bf16(x);
    } else {
      factor = x;
    }
  }

  void transpose_queries(const float* q, int64_t q_stride, int64_t num_rows) {
    s_.queries.assign(static_cast<size_t>(padded_columns(num_rows) * head_dim() / kValues), Factor{});
    for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, num_rows - first), lanes = padded_columns(rows);
      Factor* out = s_.queries.data() + first * head_dim() / kValues;
      for (int64_t k = 0; k < head_dim(); ++k)
        for (int64_t i = 0; i < rows; ++i) put(out, k, lanes, i, q[(first + i) * q_stride + k] * scale_);
    }
  }

  // Computes keys and values of the positions [tile, tile + num_keys). The keys' rope values stay in the latents.
  void materialise(int64_t tile, int64_t num_keys, const int32_t* block_table) {
    if constexpr (kPairs) {
      rows_ = reinterpret_cast<const Bf16Pair*>(latent_row<bf16>(latents_, block_table, tile));
    } else {
      rows_ =
          cpu::read_latents(s_.latents.data(), latents_, block_table, tile, tile + num_keys, kv_lora_rank_, rope_dim_);
    }
    const auto project = [&](std::vector<float>& out, const std::vector<Factor>& weight, int64_t columns) {
      std::fill(out.begin(), out.begin() + num_keys * columns, 0.0f);
      cpu::multiply_add({.c = out.data(),
                         .c_row = columns,
                         .a = rows_,
                         .a_row = (kv_lora_rank_ + rope_dim_) / kValues,
                         .a_column = 1,
                         .b = weight.data(),
                         .b_row = columns,
                         .rows = num_keys,
                         .columns = columns,
                         .depth = kv_lora_rank_ / kValues});
    };
    project(s_.keys, s_.w_uk, k_columns_);
    project(s_.values, s_.w_uv, v_columns_);
    if constexpr (kPairs) round_tile(num_keys);
  }

  void round_tile(int64_t num_keys) {
    const cpu::Bf16Kernels& round = cpu::kernels<cpu::Bf16Kernels>();
    round.round(&s_.rounded_keys.front().first, s_.keys.data(), num_keys * k_columns_);
    for (int64_t s = 0; s < num_keys; s += 2) {
      const float* const row = s_.values.data() + s * v_columns_;
      const float* const next = s + 1 < num_keys ? row + v_columns_ : nullptr;
      round.pair_floats(s_.value_pairs.data() + s / 2 * v_columns_, row, next, v_columns_);
      round.pair_floats(s_.single_values.data() + s / 2 * v_columns_, row, nullptr, v_columns_);
    }
  }

  // The keys' values without rope, as factors.
  const Factor* keys() const {
    if constexpr (kPairs) {
      return s_.rounded_keys.data();
    } else {
      return s_.keys.data();
    }
  }

  // Adds the tile to the rows [first, first + num_rows). Row first + i attends to the first `visible` + i keys of the
  // tile.
  void attend_tile(int64_t first, int64_t num_rows, int64_t visible, int64_t num_keys) {
    const cpu::SoftmaxKernels& softmax = cpu::kernels<cpu::SoftmaxKernels>();
    const int64_t lanes = padded_columns(num_rows);
    const Factor* queries = s_.queries.data() + first * head_dim() / kValues;
    float* scores = s_.scores.data();
    std::fill_n(scores, num_keys * lanes, 0.0f);
    Product product{.c = scores,
                    .c_row = lanes,
                    .a = keys(),
                    .a_row = k_columns_ / kValues,
                    .a_column = 1,
                    .b = queries,
                    .b_row = lanes,
                    .rows = num_keys,
                    .columns = lanes,
                    .depth = nope_ / kValues};
    cpu::multiply_add(product);
    product.a = rows_ + kv_lora_rank_ / kValues;
    product.a_row = (kv_lora_rank_ + rope_dim_) / kValues;
    product.b = queries + nope_ / kValues * lanes;
    product.depth = rope_dim_ / kValues;
    cpu::multiply_add(product);
    for (int64_t s = std::max<int64_t>(visible, 0); s < num_keys; ++s)
      std::fill_n(scores + s * lanes, std::min(s - visible + 1, num_rows), cpu::kNothing);
    softmax.add_scores(scores, num_keys, lanes, s_.max.data() + first, s_.sum.data() + first, s_.keep.data());
    softmax.keep_rows(s_.acc.data() + first * v_columns_, num_rows, v_columns_, s_.keep.data());
    if constexpr (kPairs) pair_weights(num_keys, lanes);
    // Keys that a row does not attend to are skipped, not multiplied by 0, because they may be NaN. Rows that attend to
    // a part of the tile go in groups of four: first the keys that all four have, then the other keys row by row.
    constexpr int64_t kTogether = 4;
    int64_t i = std::max<int64_t>(0, 1 - visible);
    while (i < num_rows) {
      const bool all_see_all = visible + i >= num_keys;
      const int64_t rows = all_see_all ? num_rows - i : std::min(kTogether, num_rows - i);
      const int64_t seen = std::min(visible + i, num_keys), shared = all_see_all ? seen : seen / kValues * kValues;
      add_values(first, i, rows, 0, shared, lanes);
      for (int64_t r = 0; r < rows && !all_see_all; ++r)
        add_values(first, i + r, 1, shared, std::min(visible + i + r, num_keys), lanes);
      i += rows;
    }
  }

  void pair_weights(int64_t num_keys, int64_t lanes) {
    for (int64_t s = 0; s < num_keys; s += 2) {
      const float* const row = s_.scores.data() + s * lanes;
      cpu::kernels<cpu::Bf16Kernels>().pair_floats(s_.weight_pairs.data() + s / 2 * lanes, row,
                                                   s + 1 < num_keys ? row + lanes : nullptr, lanes);
    }
  }

  // acc of `rows` rows += weights^T values of the keys [begin, end); `begin` begins a factor. The second key of the
  // last pair may be beyond `end`: then its values, which may be NaN, are left out.
  void add_values(int64_t first, int64_t row, int64_t rows, int64_t begin, int64_t end, int64_t lanes) {
    Product product{.c = s_.acc.data() + (first + row) * v_columns_,
                    .c_row = v_columns_,
                    .a = nullptr,
                    .a_row = 1,
                    .a_column = lanes,
                    .b = nullptr,
                    .b_row = v_columns_,
                    .rows = rows,
                    .columns = v_columns_,
                    .depth = 0};
    const auto add = [&](const Factor* weights, const Factor* values, int64_t at, int64_t depth) {
      product.a = weights + at * lanes + row;
      product.b = values + at * v_columns_;
      product.depth = depth;
      if (depth > 0) cpu::multiply_add(product);
    };
    if constexpr (kPairs) {
      add(s_.weight_pairs.data(), s_.value_pairs.data(), begin / 2, end / 2 - begin / 2);
      add(s_.weight_pairs.data(), s_.single_values.data(), end / 2, end % 2);
    } else {
      add(s_.scores.data(), s_.values.data(), begin, end - begin);
    }
  }

  using Product = std::conditional_t<kPairs, cpu::Bf16Product, cpu::FloatProduct>;

  PrefillScratch<Factor>& s_;
  Tensor latents_;
  int64_t kv_lora_rank_, nope_, rope_dim_, v_dim_, k_columns_, v_columns_;
  float scale_;
  const Factor* rows_ = nullptr;  // latents of the tile
};

}  // namespace

void CpuOps::mla_prefill(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                         const ForwardBatch& batch, float scale) {
  attend_materialised(out, q, latents, k_up, v_up, batch, scale, std::numeric_limits<int64_t>::max());
}

// A chunk may begin with tokens that attend to all positions before them. The tokens after these are absorbed: each has
// its own positions, whose keys and values would be materialised for it alone.
void CpuOps::mla_prefill_selected(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                                  Tensor selected, Tensor q_latent, Tensor latent_out, const ForwardBatch& batch,
                                  float scale) {
  const int64_t topk = selected.size(1), nope = k_up.in_features;
  const int32_t* starts = batch.query_starts.data<int32_t>();
  attend_materialised(out, q, latents, k_up, v_up, batch, scale, topk);
  for (int64_t sequence = batch.num_decode_sequences; sequence < batch.num_sequences(); ++sequence) {
    if (starts[sequence] == starts[sequence + 1]) continue;
    const int64_t start = batch.positions.data<int32_t>()[starts[sequence]];
    const int64_t first = starts[sequence] + std::max<int64_t>(0, topk - start), end = starts[sequence + 1];
    if (first >= end) continue;
    const auto rows = [&](Tensor x) {
      return x.slice(0, first - batch.num_decode_tokens, end - batch.num_decode_tokens);
    };
    linear_per_head(rows(q_latent), rows(q).slice(2, 0, nope), k_up);
    attend_absorbed(rows(latent_out), rows(q_latent), rows(q).slice(2, nope, q.size(2)), latents, rows(selected), batch,
                    first, scale);
    linear_per_head(rows(out), rows(latent_out), v_up);
  }
}

void CpuOps::attend_materialised(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                                 const ForwardBatch& batch, float scale, int64_t end_position) {
  const int64_t num_heads = q.size(1), head_dim = q.size(2), first_sequence = batch.num_decode_sequences;
  const int32_t* starts = batch.query_starts.data<int32_t>();
  const auto attend = [&]<class Factor>(std::type_identity<Factor>, int64_t begin, int64_t end) {
    thread_local PrefillScratch<Factor> scratch;  // grows once
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sequence = first_sequence + i / num_heads, head = i % num_heads;
      const int64_t first = starts[sequence];
      if (first == starts[sequence + 1]) continue;
      const int64_t start = batch.positions.data<int32_t>()[first], row = first - batch.num_decode_tokens;
      const int64_t num_rows = std::min<int64_t>(starts[sequence + 1] - first, end_position - start);
      if (num_rows <= 0) continue;
      PrefillHead<Factor>(scratch, latents, k_up, v_up, head, num_heads, head_dim, scale)
          .attend(out.row<float>(row) + head * out.stride(1), out.stride(0), q.row<float>(row) + head * q.stride(1),
                  q.stride(0), num_rows, start, batch.block_tables.row<int32_t>(sequence));
    }
  };
  const auto is_bf16 = [](const Weight& w) {
    return w.format == WeightFormat::bf16 || w.format == WeightFormat::bf16_x8;
  };
  const bool are_pairs = rounds_inputs_ && latents.dtype() == DType::bf16 && is_bf16(k_up) && is_bf16(v_up) &&
                         k_up.in_features % 2 == 0 && v_up.in_features % 2 == 0 && head_dim % 2 == 0 &&
                         cpu::kernels<cpu::ProductKernels>().bf16s;
  pool_.parallel_for((batch.num_sequences() - first_sequence) * num_heads, 1, [&](int64_t begin, int64_t end) {
    if (are_pairs) return attend(std::type_identity<Bf16Pair>(), begin, end);
    attend(std::type_identity<float>(), begin, end);
  });
}

}  // namespace longcat
