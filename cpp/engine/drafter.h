// Makes draft tokens by the checkpoint's MTP layer (multi-token prediction), behind the tokens that a step draws.
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

  // Fills step.drafts. Call it inside submitted work, after the draws of the step. The MTP layer reads all tokens of
  // the step, so that its latents cover the same positions as those of the other layers. Where the plan asks for draft
  // tokens, this waits for the draws, which decide the accepted ones. batch: of the step; sampled_ids: [max_draws] i32.
  void draft(StepInFlight& step, const ForwardBatch& batch, Tensor hidden, Tensor sampled_ids);

 private:
  // A sequence that gets draft tokens.
  struct Draft {
    size_t chunk;
    int64_t next_position;  // position of the newest token
    int64_t num_wanted;     // draft tokens to make
    int32_t newest;         // id of the newest token
    int32_t row;            // row of its hidden state in the last pass
  };

  // Whether the newest token has a slot in a block of the sequence.
  static bool has_slot(const Draft& draft) { return draft.next_position % kBlockSize != 0; }

  ForwardBatch next_tokens(const StepInFlight& step, const ForwardBatch& batch, Tensor sampled_ids);
  std::vector<Draft> begin(const StepInFlight& step, Tensor sampled_ids);
  ForwardBatch read_drafts(const StepInFlight& step, std::vector<Draft>& drafts, int64_t depth, Tensor& hidden);
  void write_history(const StepInFlight& step, const Draft& draft, int64_t depth);
  void draw(const StepInFlight& step, const std::vector<Draft>& drafts, const ForwardBatch& batch, Tensor hidden,
            int64_t depth);
  Tensor upload(const Buffer& buffer, const std::vector<int32_t>& values);
  Tensor ids_of(int64_t depth, int64_t count) const;

  Ops& ops_;
  Device& device_;
  Model& model_;
  KvCache& cache_;
  int64_t max_num_seqs_, num_tokens_;
  BatchBuffers batch_buffers_;
  Buffer next_ids_, sources_;   // [max_num_tokens] i32
  Buffer rows_;                 // [max_num_seqs] i32
  Buffer logits_;               // [max_num_seqs of this rank, vocab_size] f32
  Buffer draft_ids_;            // [num_tokens, max_num_seqs] i32
  std::vector<int32_t> zeros_;  // [max_num_seqs]
};

}  // namespace longcat
