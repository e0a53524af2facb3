// What the draws of a finished step mean for its sequences.
#pragma once

#include <cstddef>

#include "engine/step_in_flight.h"

namespace longcat {

// Whether draw `draw_idx` counts: the draft tokens that its history holds equal the draws before it.
bool is_accepted(const StepInFlight& step, size_t draw_idx);

// The output that draw `draw_idx` brings its sequence, without statistics: a token, an error, or an end without a
// token. The finish reason of a token is none: only the sequence with the token tells it (finish_reason).
StepOutput output_of(const StepInFlight& step, size_t draw_idx);

// Whether a sequence ends with its newest token.
FinishReason finish_reason(const Sequence& sequence, int32_t token_id);

// The statistics of a sequence at `now`.
RequestStats stats_of(const Sequence& sequence, Clock::time_point now);

}  // namespace longcat
