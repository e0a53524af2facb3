// Draft tokens as the device makes them: the rows of a batch of draft tokens, and the rules of their acceptance.
#pragma once

#include "ops/batch.h"

namespace longcat {

// A sequence that gets draft tokens behind its newest token, as the host plans it: one row of DraftRows::plan.
struct PlannedDrafts {
  int32_t first_row;     // row of the batch before its first draw
  int32_t first_draw;    // index of that draw among the sampled ids
  int32_t num_verified;  // draft tokens in the batch: rows first_row + 1 on, each with a draw
  int32_t num_wanted;    // most draft tokens to make; 0: padding
  // Index of its first choice of Ops::sample: num_wanted for each number of accepted tokens, from 0 to num_verified.
  int32_t first_choice;
};
constexpr int64_t kPlannedDraftsSize = sizeof(PlannedDrafts) / sizeof(int32_t);

// The draft tokens of n sequences, a row each. Ops::accept_drafts fills all but `plan`, Ops::extend_drafts goes on.
struct DraftRows {
  Tensor plan;            // [n, kPlannedDraftsSize] i32
  Tensor rows;            // [n] i32, row of the batch behind which the newest token was drawn
  Tensor next_positions;  // [n] i32, of the newest token
  Tensor num_wanted;      // [n] i32, draft tokens to make; 0 from the end of a sequence's draft tokens on
  Tensor choice;          // [n] i32, of Ops::sample
  ForwardBatch batch;     // of the newest draft tokens; the ops write token_ids, positions and block_tables

  // Those of the first `count` sequences.
  DraftRows first(int64_t count) const {
    DraftRows part = *this;
    for (Tensor* tensor :
         {&part.plan, &part.rows, &part.next_positions, &part.num_wanted, &part.choice, &part.batch.token_ids,
          &part.batch.positions, &part.batch.sequence_idx, &part.batch.block_tables})
      *tensor = tensor->first(count);
    part.batch.query_starts = batch.query_starts.first(count + 1);
    part.batch.num_decode_tokens = part.batch.num_decode_sequences = count;
    return part;
  }
};

// How many draft tokens of a sequence are accepted: those that equal the draw before them, up to the first that does
// not. token_ids: of the batch; sampled_ids: the draws.
constexpr int32_t num_accepted_drafts(const PlannedDrafts& plan, const int32_t* token_ids, const int32_t* sampled_ids) {
  int32_t count = 0;
  while (count < plan.num_verified && sampled_ids[plan.first_draw + count] == token_ids[plan.first_row + 1 + count])
    ++count;
  return count;
}

// Whether the newest token, at this position, has a slot in a block of its sequence. A block that it would begin does
// not exist yet.
constexpr bool has_draft_slot(int64_t position) { return position % kBlockSize != 0; }

// The most draft tokens behind the newest token. They stay in its block. The first needs no slot.
constexpr int64_t room_for_drafts(int64_t position) {
  return has_draft_slot(position) ? kBlockSize - 1 - position % kBlockSize : 1;
}

}  // namespace longcat
