// Makes draft tokens by the checkpoint's MTP layer (multi-token prediction), behind the tokens that a step draws.
//
// The device does not wait for the host. It decides which draft tokens are accepted, and draws the first draft token
// behind the newest token. Then it passes each draft token on to the next pass of the layer. The host learns all of
// them together with the draws of the step. So they can be part of the step's graph.
//
// The parameters of a draw depend on its position, so on the number of accepted tokens. The host lists those for every
// number (Ops::sample, choices), and the device chooses.
#pragma once

#include <vector>

#include "engine/batch_buffers.h"
#include "engine/step_in_flight.h"
#include "model/model.h"

namespace longcat {

class Drafter {
 public:
  // max_num_tokens: tokens of a step. max_num_seqs: sequences in a step that get draft tokens. num_tokens: draft tokens
  // of each, at most.
  Drafter(Ops& ops, Model& model, KvCache& cache, int64_t max_num_tokens, int64_t max_num_seqs,
          int64_t max_blocks_per_sequence, int64_t num_tokens);

  // Most values beside a batch (BatchBuffers).
  static int64_t max_beside(int64_t max_num_tokens, int64_t max_num_seqs) {
    return 2 * max_num_tokens + kPlannedDraftsSize * max_num_seqs;
  }

  // Plans the draft tokens of step.plan: fills step.drafting, and returns the values that its batch brings with it.
  // num_tokens: rows of the batch, with padding. is_recorded: all passes have equally many rows, padded to few numbers.
  std::vector<int32_t> stage(StepInFlight& step, int64_t num_tokens, bool is_recorded) const;

  // Makes the draft tokens, behind the draws of the step. The MTP layer reads all tokens of the step, so that its
  // latents cover the same positions as those of the other layers. rows_at: DraftingStep::rows_at; beside: of the
  // batch; sampled_ids: [max_draws] i32. May be recorded; what it launches depends on the shapes and rows_at.
  void draft(const std::vector<int64_t>& rows_at, const ForwardBatch& batch, Tensor beside, Tensor hidden,
             Tensor sampled_ids);

  // The numbers of rows of `depth` recorded passes for `num_sequences` sequences, in a step of `num_tokens` rows.
  std::vector<int64_t> recorded_rows(int64_t num_sequences, int64_t depth, int64_t num_tokens) const;

  // Reads the draft tokens back: they are in step.drafting.ids when the ticket is done. Call it inside submitted work.
  void download(StepInFlight& step) const;

  // Fills step.drafts, when the ticket is done.
  static void finish(StepInFlight& step);

 private:
  DraftRows rows_of(Tensor plan, const ForwardBatch& batch) const;
  Tensor ids_of(int64_t depth, int64_t count) const;

  Ops& ops_;
  Device& device_;
  Model& model_;
  KvCache& cache_;
  int64_t max_num_seqs_, num_tokens_;
  Buffer state_;                // [kStates, max_num_seqs] i32, of DraftRows
  Buffer numbers_;              // [max_num_seqs + 1] i32: 0, 1, 2, ...
  Buffer block_tables_;         // [max_num_seqs, max_blocks_per_sequence] i32
  Buffer logits_;               // [max_num_seqs of this rank, vocab_size] f32
  Buffer draft_ids_;            // [num_tokens, max_num_seqs] i32
  std::vector<int32_t> zeros_;  // [max_num_seqs]
};

}  // namespace longcat
