// The part of the model on one rank (docs/parallel.md).
#pragma once

#include <memory>
#include <vector>

#include "comm/communicator.h"
#include "io/model_config.h"

namespace longcat {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

// Part `part` of `parts` equal parts of [0, total).
constexpr Range part_of(int64_t total, int64_t part, int64_t parts) {
  return {total / parts * part, total / parts * (part + 1)};
}

struct Shard {
  int64_t tp = 1, ep = 1, rank = 0;
  Range heads, ffn;           // cut into tp parts; ranks that are equal modulo tp hold the same part
  Range experts, expert_ffn;  // ep groups of experts, each cut into world / ep slices
  Range vocab;                // rows of the word embedding and of the head, cut over all ranks
  // Rows of first_table and the following tables, cut over all ranks. Only the first and the last table may be cut.
  int64_t first_table = 0;
  std::vector<Range> tables;

  int64_t world() const { return std::max(tp, ep); }

  // Whether this rank computes the second dense FFN, whose partial sum enters the layer's last all-reduce, over all
  // ranks. Ranks from tp on hold the same FFN parts as the ranks before and leave that FFN out.
  bool adds_ffn() const { return rank < tp; }

  int tp_group() const { return static_cast<int>(rank / tp); }
};

// Throws std::invalid_argument when tp or ep does not divide a size; the message lists the divisors.
Shard make_shard(const ModelConfig& config, int64_t tp, int64_t ep, int64_t rank);

// The shard of this rank and its communicators.
struct Ranks {
  Shard shard;
  // world: all ranks. tp: the ranks that hold the other heads (Shard::tp_group). Both exchange device memory.
  std::unique_ptr<Communicator> world, tp;
};

// Returns the ranks of a job with one rank.
Ranks single_rank(const ModelConfig& config);

}  // namespace longcat
