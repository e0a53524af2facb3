// The indexer of sparse attention: stores index keys, scores them tile by tile, and selects positions.
//
// A key costs 2 * index_n_heads * index_head_dim operations for each token, a seventeenth of dense attention at the
// real shape. Scores are never kept: each token has running lists of its best positions, one in each thread. The
// selected set does not depend on how the positions are split among threads, because entries have a total order (score,
// then position).
#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

#include "cpu/attention/index_scores.h"
#include "cpu/attention/rope.h"
#include "cpu/attention/top_k.h"
#include "cpu/cpu_ops.h"
#include "cpu/rows.h"

namespace longcat {

namespace {

constexpr int64_t kRowsAtOnce = 8;        // rows of a sequence that share a tile of keys
constexpr int64_t kMinPiece = 1024;       // positions that are worth a piece of their own
constexpr int64_t kPiecesPerThread = 16;  // enough to even out the load

// Adjacent rows of a sequence whose tokens select.
struct RowGroup {
  int64_t first, count;  // rows of the batch
  const int32_t* block_table;
  int64_t end;  // of the positions that the last row may choose
};

// What one thread needs to score keys. Its memory grows once.
struct Scorer {
  int64_t group = -1;  // of the queries
  cpu::IndexQuery queries[kRowsAtOnce];
  cpu::IndexTile keys;
  std::vector<cpu::RunningTopK> lists;  // of the rows of all groups, or of one
  std::vector<bool> begun;
};

// Writes the positions of `entries` in ascending order. They are below `end`.
void write_ascending(int32_t* out, std::span<const uint64_t> entries, int64_t end) {
  thread_local std::vector<uint64_t> marks;  // zeros between calls
  const size_t num_words = static_cast<size_t>((end + 63) / 64);
  if (marks.size() < num_words) marks.resize(num_words);
  for (const uint64_t entry : entries) {
    const int64_t position = cpu::position_of(entry);
    marks[static_cast<size_t>(position / 64)] |= uint64_t{1} << position % 64;
  }
  for (size_t i = 0; i < num_words; ++i)
    for (uint64_t& word = marks[i]; word != 0; word &= word - 1)
      *out++ = static_cast<int32_t>(64 * i) + std::countr_zero(word);
}

}  // namespace

void CpuOps::index_store(Tensor index_keys, Tensor k, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                         const ForwardBatch& batch) {
  for (int64_t t = 0; t < k.size(0); ++t) {
    float* const row = k.row<float>(t);
    cpu::norm_row(row, row, norm_weight.data<float>(), k.size(1), eps);
    cpu::rotate_pairs(row, cos.row<float>(t), sin.row<float>(t), 2 * cos.size(1));
    cpu::store_index_key(index_keys, batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[t]),
                         batch.positions.data<int32_t>()[t], row, k.size(1));
  }
}

void CpuOps::select_positions(Tensor selected, Tensor q, Tensor head_weights, Tensor index_keys,
                              const ForwardBatch& batch, const SelectionRule& rule, float scale) {
  const int32_t* const positions = batch.positions.data<int32_t>();
  const int32_t* const sequences = batch.sequence_idx.data<int32_t>();
  const int64_t num_free = rule.topk - rule.init_tokens - rule.local_tokens, dim = q.size(2);
  const cpu::IndexArithmetic arithmetic = cpu::index_arithmetic(index_keys.dtype(), dim, rounds_inputs_);
  // Positions from here on are selected always.
  const auto local_begin = [&](int64_t row) { return positions[row] + 1 - rule.local_tokens; };

  std::vector<RowGroup> groups;
  for (int64_t row = 0; row < q.size(0); ++row) {
    if (positions[row] < rule.topk) continue;
    const bool joins = !groups.empty() && groups.back().first + groups.back().count == row &&
                       groups.back().count < kRowsAtOnce && sequences[row] == sequences[row - 1];
    if (!joins) groups.push_back({row, 0, batch.block_tables.row<int32_t>(sequences[row]), 0});
    ++groups.back().count;
    groups.back().end = local_begin(row);
  }
  if (groups.empty()) return;

  // Pieces of the positions, where there are few groups.
  const int64_t num_groups = static_cast<int64_t>(groups.size());
  int64_t longest = 0;
  for (const RowGroup& group : groups) longest = std::max(longest, group.end);
  const int64_t num_pieces =
      std::clamp<int64_t>(kPiecesPerThread * num_threads() / num_groups, 1, (longest + kMinPiece - 1) / kMinPiece);
  const bool shares_groups = num_pieces > 1;  // several threads score keys for the same row

  const int64_t num_lists = shares_groups ? num_groups * kRowsAtOnce : kRowsAtOnce;
  thread_local std::vector<Scorer> scorers_of_thread;
  if (std::ssize(scorers_of_thread) < num_threads()) scorers_of_thread.resize(static_cast<size_t>(num_threads()));
  const std::span<Scorer> scorers = scorers_of_thread;
  std::vector<std::atomic<uint64_t>> floors(static_cast<size_t>(num_groups * kRowsAtOnce));
  const auto list_of = [&](int64_t group, int64_t i) {
    return static_cast<size_t>(shares_groups ? group * kRowsAtOnce + i : i);
  };

  const auto score_piece = [&](Scorer& scorer, int64_t group_idx, int64_t piece) {
    const RowGroup& group = groups[static_cast<size_t>(group_idx)];
    if (scorer.group != group_idx) {
      scorer.group = group_idx;
      for (int64_t i = 0; i < group.count; ++i) {
        const int64_t row = group.first + i;
        scorer.queries[i].prepare(arithmetic, q.row<float>(row), q.stride(1), head_weights.row<float>(row), q.size(1),
                                  dim, scale);
        scorer.lists[list_of(group_idx, i)].begin(num_free);
        scorer.begun[list_of(group_idx, i)] = true;
      }
    }
    const int64_t num_blocks = (group.end + kBlockSize - 1) / kBlockSize;
    const int64_t begin = num_blocks * piece / num_pieces * kBlockSize;
    const int64_t end = std::min(num_blocks * (piece + 1) / num_pieces * kBlockSize, group.end);
    float scores[cpu::IndexTile::kSize];
    for (int64_t tile = begin; tile < end; tile += scorer.keys.num_keys()) {
      scorer.keys.load(arithmetic, index_keys, group.block_table, tile, end, dim);
      for (int64_t i = 0; i < group.count; ++i) {
        const int64_t first = std::max(tile, rule.init_tokens);
        const int64_t last = std::min(tile + scorer.keys.num_keys(), local_begin(group.first + i));
        if (first >= last) continue;
        scorer.queries[i].score(scores, scorer.keys, last - tile, i == 0);
        scorer.lists[list_of(group_idx, i)].add(scores + (first - tile), first, last - first,
                                                floors[static_cast<size_t>(group_idx * kRowsAtOnce + i)]);
      }
    }
  };

  // The selection of row i of a group, from the lists of some threads.
  const auto write_row = [&](int64_t group_idx, int64_t i, std::span<const Scorer> from) {
    const int64_t row = groups[static_cast<size_t>(group_idx)].first + i;
    thread_local std::vector<uint64_t> best;
    best.clear();
    for (const Scorer& scorer : from) {
      if (num_free == 0 || !scorer.begun[list_of(group_idx, i)]) continue;
      const std::span<const uint64_t> entries = scorer.lists[list_of(group_idx, i)].entries();
      best.insert(best.end(), entries.begin(), entries.end());
    }
    if (num_free > 0) {
      const size_t count = best.size();
      best.resize(2 * count);
      cpu::keep_largest(best.data(), static_cast<int64_t>(count), num_free, best.data() + count);
      best.resize(static_cast<size_t>(num_free));
    }
    int32_t* const out = selected.row<int32_t>(row);
    for (int64_t j = 0; j < rule.init_tokens; ++j) out[j] = static_cast<int32_t>(j);
    write_ascending(out + rule.init_tokens, best, local_begin(row));
    for (int64_t j = 0; j < rule.local_tokens; ++j)
      out[rule.topk - rule.local_tokens + j] = static_cast<int32_t>(local_begin(row) + j);
  };

  const int64_t num_items = num_free > 0 ? num_groups * num_pieces : 0;
  for (Scorer& scorer : scorers) {
    scorer.group = -1;
    if (std::ssize(scorer.lists) < num_lists) scorer.lists.resize(static_cast<size_t>(num_lists));
    scorer.begun.assign(static_cast<size_t>(num_lists), false);
  }
  std::atomic<int64_t> next_item{0};
  pool_.parallel_for(num_threads(), 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread)
      for (int64_t item; (item = next_item.fetch_add(1)) < num_items;) {
        Scorer& scorer = scorers[static_cast<size_t>(thread)];
        score_piece(scorer, item / num_pieces, item % num_pieces);
        if (shares_groups) continue;
        for (int64_t i = 0; i < groups[static_cast<size_t>(item)].count; ++i) write_row(item, i, {&scorer, 1});
      }
  });
  if (num_items > 0 && !shares_groups) return;
  pool_.parallel_for(num_groups, 1, [&](int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group)
      for (int64_t i = 0; i < groups[static_cast<size_t>(group)].count; ++i) write_row(group, i, scorers);
  });
}

void CpuOps::extend_selection(Tensor selected, Tensor rows, Tensor positions) {
  const int64_t last = selected.size(1) - 1;
  for (int64_t i = 0; i < rows.size(0); ++i) {
    const int32_t* const from = selected.row<int32_t>(rows.data<int32_t>()[i]);
    int32_t* const to = selected.row<int32_t>(i);
    if (from != to) std::copy_n(from, last, to);  // rows[i] > i: no later row is overwritten
    to[last] = positions.data<int32_t>()[i];
  }
}

}  // namespace longcat
