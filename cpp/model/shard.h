// What one rank holds of the model: see docs/parallel.md.
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

// The part-th of `parts` equal parts of [0, total).
constexpr Range part_of(int64_t total, int64_t part, int64_t parts) {
  return {total / parts * part, total / parts * (part + 1)};
}

struct Shard {
  int64_t tp = 1, ep = 1, rank = 0;
  Range heads, ffn;           // of tp ranks; ranks that are equal modulo tp hold the same
  Range experts, expert_ffn;  // experts of ep groups, each cut into world / ep slices
  Range vocab;                // rows of the word embedding and of the head, of all ranks
  // Of all ranks, too: rows that are here of first_table and those behind it; only the outer two are in part.
  int64_t first_table = 0;
  std::vector<Range> tables;

  int64_t world() const { return std::max(tp, ep); }

  // Whether this rank adds to the last sum of a layer, which is over all ranks, what its tp ranks' FFN brings. Others
  // hold the same heads and leave that FFN out.
  bool adds_ffn() const { return rank < tp; }

  int tp_group() const { return static_cast<int>(rank / tp); }
};

// Throws std::invalid_argument, with the sizes that do, for one that does not divide what it is to share out.
Shard make_shard(const ModelConfig& config, int64_t tp, int64_t ep, int64_t rank);

// The ranks as the model sees them.
struct Ranks {
  Shard shard;
  // All, and those that hold the other heads of a whole (Shard::tp_group). They exchange what lies on the device.
  std::unique_ptr<Communicator> world, tp;
};

// Of a job of one.
Ranks single_rank(const ModelConfig& config);

}  // namespace longcat
