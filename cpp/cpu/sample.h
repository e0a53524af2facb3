#pragma once

#include "ops/ops.h"

namespace longcat::cpu {

// The token ids of one sequence by position, read from the token lane.
struct History {
  const int32_t* lane;         // [num_slots]
  const int32_t* block_table;  // [max_blocks] of the sequence
  int32_t operator[](int64_t position) const { return lane[slot_of(block_table, position)]; }
};

// Applies all steps before the draw, in place. logits [vocab] become scores whose softmax is the distribution, with
// removed ids at -infinity. Returns the most likely id before temperature, or -1 when no id can be chosen (see
// Ops::sample). `history` has the positions up to row.position.
int32_t process_logits(float* logits, int64_t vocab, const SamplingRow& row, History history);

}  // namespace longcat::cpu
