// Guesses at what comes behind the tokens that a step draws, by the checkpoint's MTP layer.
#pragma once

#include <vector>

#include "engine/batch_buffers.h"
#include "engine/step_in_flight.h"
#include "model/model.h"

namespace longcat {

class Drafter {
 public:
  // max_num_tokens: of a step; max_num_seqs: that guesses are made for in one; num_tokens: of a guess at most.
  Drafter(Ops& ops, Model& model, KvCache& cache, int64_t max_num_tokens, int64_t max_num_seqs,
          int64_t max_blocks_per_sequence, int64_t num_tokens);

  // Inside submitted work, after the step's draws: reads all its tokens with the MTP layer, whose latents so reach as
  // far as the others, and fills flight.drafts. batch: of the step; sampled_ids: [max_samples] i32. Waits for the
  // draws, since how far to go on from depends on which guesses stand.
  void draft(StepInFlight& flight, const ForwardBatch& batch, Tensor sampled_ids);

 private:
  // A sequence that guesses are made for.
  struct Draft {
    size_t chunk;
    int64_t next_position;  // of the newest token, which was drawn last
    int64_t num_wanted;     // guesses
    int32_t newest;         // token
    int32_t row;            // of its hidden state in the last pass
  };

  // Whether the newest token's slot is in a block that is there.
  static bool has_slot(const Draft& draft) { return draft.next_position % kBlockSize != 0; }

  void read_step(const StepInFlight& flight, const ForwardBatch& batch, Tensor sampled_ids);
  std::vector<Draft> begin(const StepInFlight& flight, Tensor sampled_ids);
  ForwardBatch read_drafts(const StepInFlight& flight, std::vector<Draft>& drafts, int64_t depth);
  void write_history(const StepInFlight& flight, const Draft& draft, int64_t depth);
  void draw(const StepInFlight& flight, const std::vector<Draft>& drafts, const ForwardBatch& batch, int64_t depth);
  Tensor upload(const Buffer& buffer, const std::vector<int32_t>& values);
  Tensor ids_of(int64_t depth, int64_t count) const;

  Ops& ops_;
  Device& device_;
  Model& model_;
  KvCache& cache_;
  int64_t max_num_seqs_, num_tokens_;
  BatchBuffers batch_buffers_;
  Buffer next_ids_, sources_;   // [max_num_tokens] i32, of a step
  Buffer rows_;                 // [max_num_seqs] i32
  Buffer logits_;               // [max_num_seqs of this rank, vocab_size] f32
  Buffer draft_ids_;            // [num_tokens, max_num_seqs] i32
  std::vector<int32_t> zeros_;  // [max_num_seqs]
};

}  // namespace longcat
