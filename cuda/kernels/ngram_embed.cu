// N-gram ids, the gather of one row per table, the write to the token lane, and the embedding sum.
//
// Bound by latency: 12 rows of 512 bytes per token, from HBM or by UVA from pinned host memory. One block takes a
// token. One thread per table computes the id (64-bit multiply-adds and one remainder). Then one warp per table copies
// its row, 16 bytes per lane, so all rows of a token take one round trip. Packed and unaligned rows are read value by
// value, eight of them a lane.
// Shared memory: 8 bytes per table.
#include <type_traits>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/matrix.h"
#include "cuda/kernels/ngram.h"
#include "cuda/kernels/wide.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::Matrix;
using gpu::View;

struct SelectTokenIds {
  static constexpr int kThreads = 256;
  int32_t* token_ids;          // [num_tokens]
  const int32_t* sampled_ids;  // ids of the last step
  const int32_t* sources;      // [num_tokens] index into sampled_ids, or negative
  int64_t num_tokens;

  LC_HD void operator()(const Block& block) const {
    block.for_each(num_tokens, [&](int64_t t) {
      if (sources[t] < 0) return;
      const int32_t id = sampled_ids[sources[t]];
      token_ids[t] = id < 0 ? 0 : id;
    });
  }
};

// T is the element type when rows of tables and result can be copied 16 bytes at a time; void otherwise.
template <class T>
struct NgramLookup {
  static constexpr int kThreads = 512;
  int32_t* ids;   // [T, num_tables]
  View rows;      // [T, num_here * table_dim]
  int32_t* lane;  // [num_slots]
  NgramHistory history;
  NgramHashes hashes;
  int64_t num_tables, table_dim;
  int64_t first_table, first_row, num_here;  // the tables here, the first from first_row on (NgramTables)
  Matrix tables[kMaxNgramTables];            // [rows here, table_dim] each

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    int64_t* row_of = block.shared<int64_t>();
    block.for_each(num_tables + 1, [&](int64_t table) {
      if (table == num_tables) {
        lane[history.slot(t, 0)] = history.token_ids[t];  // only later steps read it
        return;
      }
      row_of[table] = ngram_row(history, hashes, t, table);
      ids[t * num_tables + table] = static_cast<int32_t>(row_of[table]);
    });
    // Row of tables[table] for this token, or -1 when it is not here.
    const auto row_here = [&](int64_t table) {
      const int64_t row = row_of[first_table + table] - (table == 0 ? first_row : 0);
      return 0 <= row && row < tables[table].out_features ? row : -1;
    };
    if constexpr (std::is_void_v<T>) {
      const int64_t pieces = (table_dim + gpu::kWide - 1) / gpu::kWide;
      block.for_each(num_here * pieces, [&](int64_t i) {
        const int64_t table = i / pieces, begin = i % pieces * gpu::kWide, row = row_here(table);
        const int64_t count = table_dim - begin < gpu::kWide ? table_dim - begin : gpu::kWide;
        float values[gpu::kWide] = {};  // read before the first is written, so that all loads are under way at once
        LC_UNROLL for (int64_t k = 0; k < gpu::kWide; ++k) if (row >= 0 && k < count) values[k] =
            tables[table].get(row, begin + k);
        LC_UNROLL for (int64_t k = 0; k < gpu::kWide; ++k) if (k < count)
            rows.set(t * rows.stride0 + table * table_dim + begin + k, values[k]);
      });
    } else {
      const int64_t pieces = table_dim / gpu::kWide;
      block.for_each(num_here * pieces, [&](int64_t i) {
        const int64_t table = i / pieces, k = i % pieces * gpu::kWide, row = row_here(table);
        gpu::Wide<T> values{};
        if (row >= 0) values = gpu::Wide<T>::load(static_cast<const T*>(tables[table].data) + row * table_dim + k);
        gpu::set_wide(rows, t * rows.stride0 + table * table_dim + k, values, 1);
      });
    }
  }
};

// out[t] = word[token_ids[t] - first_word] * scale, or zeros for vocabulary rows that are not here. T as in
// NgramLookup.
template <class T>
struct GatherWords {
  static constexpr int kThreads = 512;
  View out;                  // [T, hidden_size]
  const int32_t* token_ids;  // [T]
  Matrix word;               // [vocabulary rows here, hidden_size]
  int64_t first_word;
  float scale;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index, word_idx = token_ids[t] - first_word;
    const bool here = 0 <= word_idx && word_idx < word.out_features;
    if constexpr (std::is_void_v<T>) {
      block.for_each(word.in_features,
                     [&](int64_t k) { out.set(t * out.stride0 + k, here ? word.get(word_idx, k) * scale : 0.0f); });
    } else {
      block.for_each(word.in_features / gpu::kWide, [&](int64_t i) {
        gpu::Wide<T> values{};
        if (here)
          values = gpu::Wide<T>::load(static_cast<const T*>(word.data) + word_idx * word.in_features + i * gpu::kWide);
        gpu::set_wide(out, t * out.stride0 + i * gpu::kWide, values, scale);
      });
    }
  }
};

// Calls f(std::type_identity<T>) with T as in NgramLookup, for copies of `dim` values from `from` to `to`.
template <class F>
void with_row_type(std::span<const Weight> from, const View& to, int64_t dim, const F& f) {
  bool wide = !from.empty() && dim % gpu::kWide == 0 && gpu::is_wide(to.data, to.stride0, size_of(to.dtype));
  for (const Weight& weight : from)
    wide = wide && weight.format == from[0].format &&
           gpu::is_wide(weight.data, dim, weight.format == WeightFormat::bf16 ? 2 : 4);
  if (wide && from[0].format == WeightFormat::bf16) return f(std::type_identity<bf16>());
  if (wide && from[0].format == WeightFormat::f32) return f(std::type_identity<float>());
  f(std::type_identity<void>());
}

}  // namespace

void CudaOps::select_token_ids(Tensor token_ids, Tensor sampled_ids, Tensor sources) {
  gpu::launch(*device_, 1, 0,
              SelectTokenIds{.token_ids = token_ids.data<int32_t>(),
                             .sampled_ids = sampled_ids.data<int32_t>(),
                             .sources = sources.data<int32_t>(),
                             .num_tokens = token_ids.size(0)});
}

void CudaOps::ngram_lookup(Tensor ids, Tensor rows, Tensor lane, const ForwardBatch& batch, const NgramTables& ngram) {
  const int64_t num_tables = static_cast<int64_t>(ngram.moduli.size());
  const int64_t num_here = static_cast<int64_t>(ngram.tables.size());
  LC_CHECK(ngram.max_order <= kMaxNgram && num_tables <= kMaxNgramTables, num_tables, " N-gram tables, at most ",
           kMaxNgramTables);
  const int64_t table_dim = num_here > 0 ? ngram.tables[0].in_features : 0;
  with_row_type(ngram.tables, View(rows), table_dim, [&]<class T>(std::type_identity<T>) {
    NgramLookup<T> kernel{.ids = ids.data<int32_t>(),
                          .rows = View(rows),
                          .lane = lane.data<int32_t>(),
                          .history = {.token_ids = batch.token_ids.data<int32_t>(),
                                      .positions = batch.positions.data<int32_t>(),
                                      .sequence_idx = batch.sequence_idx.data<int32_t>(),
                                      .query_starts = batch.query_starts.data<int32_t>(),
                                      .block_tables = batch.block_tables.data<int32_t>(),
                                      .block_table_stride = batch.block_tables.stride(0),
                                      .lane = lane.data<int32_t>(),
                                      .eos_token_id = ngram.eos_token_id},
                          .hashes = {.max_order = ngram.max_order, .splits = ngram.splits},
                          .num_tables = num_tables,
                          .table_dim = table_dim,
                          .first_table = ngram.first_table,
                          .first_row = ngram.first_row,
                          .num_here = num_here,
                          .tables = {}};
    for (int64_t table = 0; table < num_here; ++table)
      kernel.tables[table] = Matrix(ngram.tables[static_cast<size_t>(table)]);
    for (int64_t table = 0; table < num_tables; ++table)
      kernel.hashes.moduli[table] = ngram.moduli[static_cast<size_t>(table)];
    for (size_t i = 0; i < ngram.powers.size(); ++i) kernel.hashes.powers[i] = ngram.powers[i];
    gpu::launch(*device_, batch.num_tokens(), 8 * num_tables, kernel);
  });
}

// The vocabulary rows go to `out` first; the projection's epilogue adds to them and scales. So out has one more
// rounding than the sum needs, and only where a vocabulary row is not exact in the activations' dtype.
void CudaOps::embed(Tensor out, Tensor token_ids, const Weight& word, int64_t first_word, Tensor rows,
                    const Weight& projection, float scale) {
  const bool has_ngrams = !projection.empty();
  with_row_type({&word, 1}, View(out), word.in_features, [&]<class T>(std::type_identity<T>) {
    gpu::launch(*device_, out.size(0), 0,
                GatherWords<T>{.out = View(out),
                               .token_ids = token_ids.data<int32_t>(),
                               .word = Matrix(word),
                               .first_word = first_word,
                               .scale = has_ngrams ? 1.0f : scale});
  });
  if (has_ngrams) gemm(out, rows, projection, true, scale);
}

}  // namespace longcat
