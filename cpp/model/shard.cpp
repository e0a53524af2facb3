#include "model/shard.h"

#include <algorithm>

namespace longcat {

namespace {

std::string divisors_of(int64_t total) {
  std::string list;
  int64_t last = 1;
  for (int64_t n = 1; n <= total; ++n)
    if (total % n == 0) {
      if (n > 1) list += (list.empty() ? "" : ", ") + std::to_string(last);
      last = n;
    }
  return list.empty() ? std::to_string(last) : list + " or " + std::to_string(last);
}

void require_divides(const char* option, int64_t parts, const char* what, int64_t total) {
  if (total % parts != 0)
    throw std::invalid_argument(str_cat("[parallel] ", option, "=", parts, " does not divide ", what, "=", total,
                                        ": use ", divisors_of(total)));
}

// Each rank gets num_tables / world tables. Where that is a fraction, a table is cut at that fraction of its rows.
void share_tables(Shard& shard, const NgramConfig& c) {
  const int64_t world = shard.world();
  const auto row_at = [&](int64_t table, int64_t share) {  // first row of `table` after share / world tables
    return c.rows_of(table) * std::clamp<int64_t>(share - table * world, 0, world) / world;
  };
  for (int64_t table = 0; table < c.num_tables(); ++table) {
    const Range here{row_at(table, c.num_tables() * shard.rank), row_at(table, c.num_tables() * (shard.rank + 1))};
    if (here.size() == 0) continue;
    if (shard.tables.empty()) shard.first_table = table;
    shard.tables.push_back(here);
  }
}

}  // namespace

Shard make_shard(const ModelConfig& c, int64_t tp, int64_t ep, int64_t rank) {
  for (const auto& [option, value] : {std::pair{"tp", tp}, std::pair{"ep", ep}})
    if (value < 1) throw std::invalid_argument(str_cat("[parallel] ", option, "=", value, ": expected at least 1"));
  const int64_t world = std::max(tp, ep), slices = world / ep;
  if (world % tp != 0 || world % ep != 0)
    throw std::invalid_argument(
        str_cat("[parallel] tp=", tp, " and ep=", ep, ": the larger must be a multiple of the other"));
  LC_CHECK(0 <= rank && rank < world, rank, " of ", world);
  require_divides("tp", tp, "num_attention_heads", c.num_attention_heads);
  require_divides("tp", tp, "ffn_hidden_size", c.ffn_hidden_size);
  require_divides("ep", ep, "n_routed_experts", c.n_routed_experts);
  require_divides("tp / ep", slices, "expert_ffn_hidden_size", c.expert_ffn_hidden_size);
  require_divides("the number of ranks", world, "vocab_size", c.vocab_size);

  Shard shard{.tp = tp,
              .ep = ep,
              .rank = rank,
              .heads = part_of(c.num_attention_heads, rank % tp, tp),
              .ffn = part_of(c.ffn_hidden_size, rank % tp, tp),
              .experts = part_of(c.n_routed_experts, rank / slices, ep),
              .expert_ffn = part_of(c.expert_ffn_hidden_size, rank % slices, slices),
              .vocab = part_of(c.vocab_size, rank, world),
              .tables = {}};
  if (c.ngram) share_tables(shard, *c.ngram);
  return shard;
}

Ranks single_rank(const ModelConfig& config) {
  return {.shard = make_shard(config, 1, 1, 0), .world = make_single_communicator(), .tp = make_single_communicator()};
}

}  // namespace longcat
