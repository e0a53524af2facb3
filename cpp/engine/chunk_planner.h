// How a step's token budget is shared, and what a chunk of a sequence holds. The scheduler decides which sequences run.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/speculation.h"
#include "engine/step_plan.h"

namespace longcat {

// Shares `budget` tokens among sequences in the order of their arrival. The oldest gets half, so that long prompts end.
// The one that wants least of the others gets a quarter. Equal shares of the rest follow.
// wanted: [num_sequences] tokens, each at least 1. Returns [num_sequences] tokens, at most `wanted` each.
std::vector<int64_t> share_budget(std::span<const int64_t> wanted, int64_t budget);

// The draft tokens that a step verifies behind the newest token of `sequence`: at most `most`. They end with the
// sequence's last block and with max_tokens. None for a constrained sequence, whose next mask is not known.
std::span<const int32_t> draft_tokens(const Sequence& sequence, int64_t most, const Speculation& speculation);

// The chunk of the next `count` tokens that are not computed yet, and behind them `drafts`. Marks them as scheduled.
PlannedChunk plan_chunk(const std::shared_ptr<Sequence>& sequence, int64_t count, std::span<const int32_t> drafts);

// Tells each chunk of a finished plan what the MTP layer reads behind it, and how many draft tokens it makes.
void plan_drafts(const Speculation& speculation, StepPlan& plan);

}  // namespace longcat
