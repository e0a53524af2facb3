// Rows of draft tokens: which are accepted, and where the next ones lie. A step's draft tokens so need no answer of the
// host.
//
// Bound by latency: a block takes a sequence and copies its block table; one thread compares a few ids.
#include "cuda/cuda_ops.h"
#include "cuda/kernels/block.h"

namespace longcat {

namespace {

using gpu::Block;

// DraftRows as pointers.
struct DraftView {
  const PlannedDrafts* plan;
  int32_t *rows, *next_positions, *num_wanted, *choice;
  int32_t *token_ids, *positions, *block_tables;
  int64_t table_stride;  // [elements]

  explicit DraftView(const DraftRows& drafts)
      : plan(drafts.plan.data<const PlannedDrafts>()),
        rows(drafts.rows.data<int32_t>()),
        next_positions(drafts.next_positions.data<int32_t>()),
        num_wanted(drafts.num_wanted.data<int32_t>()),
        choice(drafts.choice.data<int32_t>()),
        token_ids(drafts.batch.token_ids.data<int32_t>()),
        positions(drafts.batch.positions.data<int32_t>()),
        block_tables(drafts.batch.block_tables.data<int32_t>()),
        table_stride(drafts.batch.block_tables.stride(0)) {}
};

struct AcceptDrafts {
  static constexpr int kThreads = 256;
  DraftView drafts;
  int32_t* drawn;              // [n]
  const int32_t* sampled_ids;  // [num_draws]
  int32_t* lane;               // [num_slots]
  const int32_t* token_ids;    // [num_tokens] of the step
  const int32_t* positions;
  const int32_t* sequence_idx;
  const int32_t* block_tables;  // [num_sequences, max_blocks]
  int64_t table_stride, width;  // [elements]

  LC_HD void operator()(const Block& block) const {
    const int64_t i = block.index;
    const PlannedDrafts plan = drafts.plan[i];
    const int32_t* const table = block_tables + sequence_idx[plan.first_row] * table_stride;
    block.for_each(width + 1, [&](int64_t at) {
      if (at < width) {
        drafts.block_tables[i * drafts.table_stride + at] = table[at];
        return;
      }
      const int32_t accepted = num_accepted_drafts(plan, token_ids, sampled_ids), row = plan.first_row + accepted;
      const int32_t newest = sampled_ids[plan.first_draw + accepted], next_position = positions[row] + 1;
      const int32_t room = static_cast<int32_t>(room_for_drafts(next_position));
      const int32_t wanted = newest < 0 ? 0 : room < plan.num_wanted ? room : plan.num_wanted;
      drafts.rows[i] = row;
      drafts.next_positions[i] = next_position;
      drafts.num_wanted[i] = wanted;
      drafts.choice[i] = wanted > 0 ? plan.first_choice + accepted * plan.num_wanted : -1;
      drawn[i] = -1;
      if (wanted > 0 && has_draft_slot(next_position)) lane[slot_of(table, next_position)] = newest;
    });
  }
};

struct ExtendDrafts {
  static constexpr int kThreads = 32;
  DraftView drafts;
  int32_t* drawn;       // [n]
  const int32_t* last;  // [n]
  int32_t* lane;        // [num_slots]
  int64_t count;
  int32_t depth;

  LC_HD void operator()(const Block& block) const {
    block.for_each(count, [&](int64_t i) {
      const int32_t id = last[i], position = drafts.next_positions[i] + depth;  // of the draft token
      int32_t* const table = drafts.block_tables + i * drafts.table_stride;
      const bool goes_on = id >= 0 && drafts.num_wanted[i] > depth;
      if (goes_on) {
        ++drafts.choice[i];
        lane[slot_of(table, position)] = id;
      } else {
        drafts.num_wanted[i] = table[0] = 0;  // the null block
        drafts.choice[i] = -1;
      }
      drafts.token_ids[i] = goes_on ? id : 0;
      drafts.positions[i] = goes_on ? position - 1 : 0;
      drawn[i] = -1;
    });
  }
};

}  // namespace

void CudaOps::accept_drafts(DraftRows& drafts, Tensor token_ids, Tensor sampled_ids, Tensor lane,
                            const ForwardBatch& batch) {
  gpu::launch(*device_, token_ids.size(0), 0,
              AcceptDrafts{.drafts = DraftView(drafts),
                           .drawn = token_ids.data<int32_t>(),
                           .sampled_ids = sampled_ids.data<int32_t>(),
                           .lane = lane.data<int32_t>(),
                           .token_ids = batch.token_ids.data<int32_t>(),
                           .positions = batch.positions.data<int32_t>(),
                           .sequence_idx = batch.sequence_idx.data<int32_t>(),
                           .block_tables = batch.block_tables.data<int32_t>(),
                           .table_stride = batch.block_tables.stride(0),
                           .width = batch.block_tables.size(1)});
}

void CudaOps::extend_drafts(DraftRows& drafts, Tensor token_ids, Tensor last, Tensor lane, int64_t depth) {
  gpu::launch(*device_, 1, 0,
              ExtendDrafts{.drafts = DraftView(drafts),
                           .drawn = token_ids.data<int32_t>(),
                           .last = last.data<int32_t>(),
                           .lane = lane.data<int32_t>(),
                           .count = token_ids.size(0),
                           .depth = static_cast<int32_t>(depth)});
}

}  // namespace longcat
