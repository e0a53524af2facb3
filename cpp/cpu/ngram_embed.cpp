// N-gram hashing, the gather of one row per table (with read-ahead where tables are on disk), and the embedding sum.
#include <algorithm>
#include <vector>

#include "base/mapped_file.h"
#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"

namespace longcat {

namespace {

// Up to max_order - 1 predecessors of token t, nearest first. They are 0 before the sequence's start and from the last
// EOS backwards.
void look_back(int64_t* context, int64_t t, const int32_t* lane, const ForwardBatch& batch, const NgramTables& ngram) {
  const int64_t sequence = batch.sequence_idx.data<int32_t>()[t];
  const int64_t position = batch.positions.data<int32_t>()[t];
  const int64_t chunk_start = batch.query_starts.data<int32_t>()[sequence];
  bool open = true;
  for (int64_t d = 1; d < ngram.max_order; ++d) {
    int32_t id = 0;
    open = open && position >= d;
    if (open) {
      id = t - d >= chunk_start ? batch.token_ids.data<int32_t>()[t - d] : lane[slot_of(batch, sequence, position - d)];
      open = id != ngram.eos_token_id;
    }
    context[d - 1] = open ? id : 0;
  }
}

// Starts to read the rows of tables[i] that `ids` name and that are here, in the order of the file. The disk then works
// on all of them at once instead of one page fault after another. For a page that is in memory this costs half a
// microsecond.
void read_rows_ahead(const NgramTables& ngram, int64_t i, Tensor ids) {
  thread_local std::vector<int64_t> sorted;  // grows once
  sorted.clear();
  for (int64_t t = 0; t < ids.size(0); ++t)
    if (const int64_t row = ngram.row_here(i, ids.row<int32_t>(t)[ngram.first_table + i]); row >= 0)
      sorted.push_back(row);
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  const Weight& table = ngram.tables[static_cast<size_t>(i)];
  const int64_t row_bytes = table.num_bytes() / table.out_features;
  for (const int64_t row : sorted) read_ahead(static_cast<const char*>(table.data) + row * row_bytes, row_bytes);
}

}  // namespace

void CpuOps::select_token_ids(Tensor token_ids, Tensor sampled_ids, Tensor sources) {
  for (int64_t t = 0; t < token_ids.size(0); ++t)
    if (const int32_t source = sources.data<int32_t>()[t]; source >= 0)
      token_ids.data<int32_t>()[t] = std::max(sampled_ids.data<int32_t>()[source], 0);
}

void CpuOps::ngram_lookup(Tensor ids, Tensor rows, Tensor lane, const ForwardBatch& batch, const NgramTables& ngram) {
  LC_CHECK(ngram.max_order <= kMaxNgram);
  const int64_t num_tokens = batch.num_tokens(), num_tables = static_cast<int64_t>(ngram.moduli.size());
  const int64_t num_here = static_cast<int64_t>(ngram.tables.size());
  pool_.parallel_for(num_tokens, grain_for(64 * num_tables), [&](int64_t begin, int64_t end) {
    int64_t context[kMaxNgram] = {};
    for (int64_t t = begin; t < end; ++t) {
      const int32_t token = batch.token_ids.data<int32_t>()[t];
      lane.data<int32_t>()[slot_of(batch, batch.sequence_idx.data<int32_t>()[t], batch.positions.data<int32_t>()[t])] =
          token;
      look_back(context, t, lane.data<int32_t>(), batch, ngram);
      for (int64_t table = 0; table < num_tables; ++table) {
        const int64_t order = table / ngram.splits + 2;
        const int64_t* powers = ngram.powers.data() + table * (ngram.max_order - 1);
        int64_t sum = token;
        for (int64_t d = 1; d < order; ++d) sum += context[d - 1] * powers[d - 1];
        ids.row<int32_t>(t)[table] = static_cast<int32_t>(sum % ngram.moduli[table]);
      }
    }
  });
  if (num_here == 0) return;
  pool_.parallel_for(num_here, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (ngram.tables[i].placement == Placement::disk) read_rows_ahead(ngram, i, ids);
  });
  pool_.parallel_for(num_tokens, grain_for(4 * rows.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t i = 0; i < num_here; ++i) {
        const Weight& weight = ngram.tables[i];
        float* out = rows.row<float>(t) + i * weight.in_features;
        if (const int64_t row = ngram.row_here(i, ids.row<int32_t>(t)[ngram.first_table + i]); row >= 0) {
          cpu::read_row(out, weight, row);
        } else {
          std::fill_n(out, weight.in_features, 0.0f);
        }
      }
  });
}

void CpuOps::embed(Tensor out, Tensor token_ids, const Weight& word, int64_t first_word, Tensor rows,
                   const Weight& projection, float scale) {
  const bool has_ngrams = !projection.empty();
  if (has_ngrams) linear(out, rows, projection);
  pool_.parallel_for(out.size(0), grain_for(out.size(1)), [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> word_row;  // grows once
    word_row.resize(static_cast<size_t>(out.size(1)));
    for (int64_t t = begin; t < end; ++t) {
      const int64_t word_idx = token_ids.data<int32_t>()[t] - first_word;
      if (0 <= word_idx && word_idx < word.out_features) {
        cpu::read_row(word_row.data(), word, word_idx);
      } else {
        std::fill(word_row.begin(), word_row.end(), 0.0f);
      }
      float* y = out.row<float>(t);
      for (int64_t k = 0; k < out.size(1); ++k) y[k] = (has_ngrams ? y[k] + word_row[k] : word_row[k]) * scale;
    }
  });
}

}  // namespace longcat
