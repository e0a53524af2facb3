// Rows of draft tokens: which are accepted, and where the next ones lie.
#include <algorithm>

#include "cpu/cpu_ops.h"

namespace longcat {

void CpuOps::accept_drafts(DraftRows& drafts, Tensor token_ids, Tensor sampled_ids, Tensor lane,
                           const ForwardBatch& batch) {
  const int64_t width = batch.block_tables.size(1);
  for (int64_t i = 0; i < token_ids.size(0); ++i) {
    const PlannedDrafts& plan = drafts.plan.data<PlannedDrafts>()[i];
    const int32_t accepted = num_accepted_drafts(plan, batch.token_ids.data<int32_t>(), sampled_ids.data<int32_t>());
    const int32_t row = plan.first_row + accepted, newest = sampled_ids.data<int32_t>()[plan.first_draw + accepted];
    const int32_t next_position = batch.positions.data<int32_t>()[row] + 1;
    const int32_t room = static_cast<int32_t>(room_for_drafts(next_position));
    const int32_t num_wanted = newest < 0 ? 0 : std::min(plan.num_wanted, room);
    drafts.rows.data<int32_t>()[i] = row;
    drafts.next_positions.data<int32_t>()[i] = next_position;
    drafts.num_wanted.data<int32_t>()[i] = num_wanted;
    drafts.choice.data<int32_t>()[i] = num_wanted > 0 ? plan.first_choice + accepted * plan.num_wanted : -1;
    token_ids.data<int32_t>()[i] = -1;
    const int32_t* const table = batch.block_tables.row<int32_t>(batch.sequence_idx.data<int32_t>()[row]);
    std::copy_n(table, width, drafts.batch.block_tables.row<int32_t>(i));
    if (num_wanted > 0 && has_draft_slot(next_position)) lane.data<int32_t>()[slot_of(table, next_position)] = newest;
  }
}

void CpuOps::extend_drafts(DraftRows& drafts, Tensor token_ids, Tensor last, Tensor lane, int64_t depth) {
  for (int64_t i = 0; i < token_ids.size(0); ++i) {
    const int32_t id = last.data<int32_t>()[i];
    int32_t& num_wanted = drafts.num_wanted.data<int32_t>()[i];
    int32_t* const table = drafts.batch.block_tables.row<int32_t>(i);
    const bool goes_on = id >= 0 && num_wanted > depth;
    const int64_t position = drafts.next_positions.data<int32_t>()[i] + depth;  // of the draft token
    if (goes_on) {
      ++drafts.choice.data<int32_t>()[i];
      lane.data<int32_t>()[slot_of(table, position)] = id;
    } else {
      num_wanted = table[0] = 0;  // the null block
      drafts.choice.data<int32_t>()[i] = -1;
    }
    drafts.batch.token_ids.data<int32_t>()[i] = goes_on ? id : 0;
    drafts.batch.positions.data<int32_t>()[i] = goes_on ? static_cast<int32_t>(position) - 1 : 0;
    token_ids.data<int32_t>()[i] = -1;
  }
}

}  // namespace longcat
