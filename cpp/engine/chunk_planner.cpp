#include "engine/chunk_planner.h"

#include <algorithm>

#include "base/error.h"
#include "ops/batch.h"

namespace longcat {

std::vector<int64_t> share_budget(std::span<const int64_t> wanted, int64_t budget) {
  std::vector<int64_t> counts(wanted.size(), 0);
  const auto give = [&](size_t i, int64_t share) {
    const int64_t more = std::min({wanted[i] - counts[i], share, budget});
    counts[i] += more;
    budget -= more;
  };
  if (counts.size() > 1) {
    const int64_t all = budget;
    give(0, (all + 1) / 2);
    give(static_cast<size_t>(std::ranges::min_element(wanted.begin() + 1, wanted.end()) - wanted.begin()),
         (all + 3) / 4);
  }
  for (size_t i = 1; i < counts.size(); ++i) {
    const int64_t others = static_cast<int64_t>(counts.size() - i);
    give(i, (budget + others - 1) / others);
  }
  for (size_t i = 0; i < counts.size(); ++i) give(i, budget);  // the tokens that the other sequences left
  return counts;
}

std::span<const int32_t> draft_tokens(const Sequence& s, int64_t most, const Speculation& speculation) {
  if (speculation.num_tokens == 0 || s.num_pending > 0 || s.params.constrained) return {};
  most = std::min({most, speculation.num_tokens, kBlockSize - 1 - s.num_scheduled % kBlockSize,
                   s.max_tokens - s.num_output_tokens() - 1});
  if (most <= 0) return {};
  const std::span<const int32_t> found =
      speculation.by_mtp() ? s.drafts : look_up(s.token_ids, most, speculation.lookup);
  return found.first(std::min(found.size(), static_cast<size_t>(most)));
}

PlannedChunk plan_chunk(const std::shared_ptr<Sequence>& sequence, int64_t count, std::span<const int32_t> drafts) {
  Sequence& s = *sequence;
  const int64_t start = s.num_scheduled, end = start + count;
  const bool last_is_pending = s.num_pending > 0 && end == s.num_tokens();
  LC_CHECK(s.num_pending <= 1 && (last_is_pending || end <= static_cast<int64_t>(s.token_ids.size())));
  const auto ids = s.token_ids.begin() + start;
  const int64_t num_blocks = (end + kBlockSize - 1) / kBlockSize;
  PlannedChunk chunk{.sequence = sequence,
                     .start = start,
                     .count = count + static_cast<int64_t>(drafts.size()),
                     .generated = start >= s.num_prompt_tokens,
                     .source = last_is_pending ? s.pending_row : -1,
                     .token_ids = {ids, ids + (last_is_pending ? count - 1 : count)},
                     .blocks = {s.blocks.begin(), s.blocks.begin() + num_blocks},
                     .is_drawn_from = end == s.num_tokens(),
                     .num_draft_tokens = static_cast<int64_t>(drafts.size())};
  chunk.token_ids.insert(chunk.token_ids.end(), drafts.begin(), drafts.end());
  if (s.params.prompt_logprobs >= 0) {
    chunk.score_begin = std::max(start, s.num_scored);
    chunk.score_end = std::max(chunk.score_begin, std::min(end, s.num_prompt_tokens - 1));
    chunk.score_ids = {s.token_ids.begin() + chunk.score_begin + 1, s.token_ids.begin() + chunk.score_end + 1};
    s.num_scored = std::max(s.num_scored, chunk.score_end);
  }
  s.num_scheduled = end;
  return chunk;
}

void plan_drafts(const Speculation& speculation, DraftPolicy& policy, StepPlan& plan) {
  policy.begin_plan(std::ranges::count_if(plan.chunks, &PlannedChunk::is_drawn_from), plan.decodes_only());
  int64_t room = speculation.most_in_a_step();
  for (PlannedChunk& chunk : plan.chunks) {
    const Sequence& s = *chunk.sequence;
    if (!chunk.is_drawn_from) {
      chunk.next_token_id = s.token_ids[static_cast<size_t>(chunk.start + chunk.count)];
    } else if (!s.params.constrained) {
      chunk.num_next_drafts = std::max<int64_t>(
          0, std::min({room, policy.num_drafts(s.acceptance), s.max_tokens - s.num_output_tokens() - 1}));
      room -= chunk.num_next_drafts;
    }
  }
}

}  // namespace longcat
