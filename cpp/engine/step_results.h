// Turns the draws of a finished step into outputs of its sequences.
#pragma once

#include <cstddef>

#include "engine/step_in_flight.h"

namespace longcat {

// Returns whether draw `draw_idx` counts: the draft tokens in its history equal the draws before it.
bool is_accepted(const StepInFlight& step, size_t draw_idx);

// Returns how many draft tokens of a chunk are accepted.
int64_t num_accepted(const StepInFlight& step, size_t chunk_idx);

// Returns the output of draw `draw_idx`, without statistics: a token, an error, or an end without a token. The finish
// reason of a token stays none, because it depends on the sequence with that token (finish_reason).
StepOutput output_of(const StepInFlight& step, size_t draw_idx);

// Returns the reason why a sequence ends with its newest token; none: it goes on.
FinishReason finish_reason(const Sequence& sequence, int32_t token_id);

// Returns the statistics of a sequence at the time `now`.
RequestStats stats_of(const Sequence& sequence, Clock::time_point now);

}  // namespace longcat
