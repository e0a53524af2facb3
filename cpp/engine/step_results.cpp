#include "engine/step_results.h"

#include <algorithm>
#include <utility>

namespace longcat {

namespace {

// Returns whether a mask allows stop tokens alone, because its grammar is at an end.
bool allows_stops_alone(const Sequence& sequence, const std::vector<uint32_t>& mask) {
  if (!sequence.params.constrained) return false;
  std::vector<uint32_t> left = mask;
  bool allows_stop = false;
  for (const int32_t id : sequence.params.stop_token_ids) {
    uint32_t& word = left.at(static_cast<size_t>(id / 32));
    allows_stop = allows_stop || (word >> (id % 32) & 1) != 0;
    word &= ~(uint32_t{1} << (id % 32));
  }
  return allows_stop && std::ranges::all_of(left, [](uint32_t word) { return word == 0; });
}

double ms_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - begin).count();
}

}  // namespace

bool is_accepted(const StepInFlight& step, size_t draw_idx) {
  const PlannedDraw& draw = step.plan.draws[draw_idx];
  const PlannedChunk& chunk = step.plan.chunks[draw.chunk];
  const auto drafts = chunk.token_ids.end() - chunk.num_draft_tokens;
  const auto drawn = step.sampled_ids.begin() + static_cast<int64_t>(draw_idx) - draw.num_drafts;
  return std::equal(drafts, drafts + draw.num_drafts, drawn);
}

int64_t num_accepted(const StepInFlight& step, size_t chunk_idx) {
  int64_t count = 0;
  for (size_t i = 0; i < step.plan.draws.size(); ++i)
    if (const PlannedDraw& draw = step.plan.draws[i]; draw.chunk == chunk_idx && is_accepted(step, i))
      count = std::max(count, draw.num_drafts);
  return count;
}

StepOutput output_of(const StepInFlight& step, size_t draw_idx) {
  const PlannedDraw& draw = step.plan.draws[draw_idx];
  const int32_t token_id = step.sampled_ids[draw_idx];
  const std::string& error = step.errors[draw_idx];
  StepOutput output{.request_id = draw.sequence->request_id};
  if (draw.ends) {
    output.finish_reason = FinishReason::length;
  } else if (!error.empty()) {
    output.finish_reason = FinishReason::error;
    output.error = error;
  } else if (token_id >= 0) {
    output.token_id = token_id;
  } else if (allows_stops_alone(*draw.sequence, step.masks[draw_idx])) {
    // The text is complete, and min_tokens forbids the stop token that would end it.
    output.finish_reason = FinishReason::stop;
  } else {
    output.finish_reason = FinishReason::error;
    output.error = "no token can follow: its logits are not finite, or all are forbidden";
  }
  return output;
}

FinishReason finish_reason(const Sequence& sequence, int32_t token_id) {
  if (std::ranges::count(sequence.params.stop_token_ids, token_id) > 0) return FinishReason::stop;
  const int64_t num_output_tokens = static_cast<int64_t>(sequence.token_ids.size()) - sequence.num_prompt_tokens;
  return num_output_tokens >= sequence.max_tokens ? FinishReason::length : FinishReason::none;
}

RequestStats stats_of(const Sequence& sequence, Clock::time_point now) {
  constexpr Clock::time_point kNever{};
  RequestStats stats = sequence.stats;
  const Clock::time_point first_step = sequence.first_step == kNever ? now : sequence.first_step;
  const Clock::time_point first_token = sequence.first_token == kNever ? now : sequence.first_token;
  stats.queue_ms = ms_between(sequence.arrival, first_step);
  stats.prefill_ms = ms_between(first_step, first_token);
  stats.decode_ms = ms_between(first_token, now);
  return stats;
}

}  // namespace longcat
