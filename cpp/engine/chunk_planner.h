// Shares the token budget of a step, and fills the chunks of its sequences. The scheduler decides which sequences run.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/draft_policy.h"
#include "engine/speculation.h"
#include "engine/step_plan.h"

namespace longcat {

// Shares `budget` tokens among sequences, given in the order of their arrival. The oldest gets half, so that long
// prompts end. The one with the fewest wanted tokens among the others gets a quarter. All share the rest equally.
// wanted: [num_sequences] tokens, each at least 1. Returns [num_sequences] tokens, at most `wanted` each.
std::vector<int64_t> share_budget(std::span<const int64_t> wanted, int64_t budget);

// Returns the draft tokens that a step verifies behind the newest token of `sequence`: at most `most`, none beyond the
// sequence's last block or max_tokens. A constrained sequence gets none: the mask behind a draft token is not known.
std::span<const int32_t> draft_tokens(const Sequence& sequence, int64_t most, const Speculation& speculation);

// Returns a chunk of the next `count` tokens that are not computed yet, with `drafts` behind them. Marks these tokens
// as scheduled.
PlannedChunk plan_chunk(const std::shared_ptr<Sequence>& sequence, int64_t count, std::span<const int32_t> drafts);

// Writes to each chunk of a finished plan which token the MTP layer reads behind it, and how many draft tokens to make.
void plan_drafts(const Speculation& speculation, DraftPolicy& policy, StepPlan& plan);

}  // namespace longcat
