// The runner carries out plans: it moves blocks, lays out the batch, computes it and draws tokens. Two steps may be in
// flight, so that the host prepares one while the device computes the other.
#pragma once

#include <algorithm>
#include <compare>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/batch_buffers.h"
#include "engine/drafter.h"
#include "engine/step_in_flight.h"
#include "model/model.h"

namespace longcat {

struct RunnerLimits {
  int64_t max_num_seqs, max_draws, max_num_batched_tokens, max_blocks_per_sequence, block_bytes;
  int64_t num_drafts = 0;  // draft tokens of a sequence by the MTP layer; 0: none

  // Sequences with draft tokens in a step: each takes one of the draws beyond max_num_seqs.
  int64_t max_drafting() const { return std::min(max_num_seqs, max_draws - max_num_seqs); }
  // Most values beside a batch.
  int64_t max_beside() const {
    return num_drafts > 0 ? Drafter::max_beside(max_num_batched_tokens, max_drafting()) : 0;
  }
};

class ModelRunner {
 public:
  static constexpr int kSlots = 3;  // slots of BatchBuffers: one for each of two steps, and one for forward()

  ModelRunner(Ops& ops, Model& model, KvCache& cache, const RunnerLimits& limits);
  ~ModelRunner();

  void set_observer(StepObserver* observer) { observer_ = observer; }

  // stage() lays the plan out and reads its sequences. submit() starts the step; it may block on a device. wait()
  // returns when the results are there, or throws the step's error. Wait for steps in the order of their launches.
  std::unique_ptr<StepInFlight> stage(StepPlan plan);
  void submit(StepInFlight& step);
  void wait(StepInFlight& step);

  // Writes the logits of all tokens of one chunk of a prompt to out [num_tokens, vocab_size] on the host, and waits for
  // them. out null: this rank computes its share only.
  void forward(const Chunk& chunk, float* out);

  int64_t num_recordings() const { return static_cast<int64_t>(recordings_.size()); }
  // Kernels and copies of all recorded steps.
  int64_t num_recorded_nodes() const;

 private:
  int64_t padded_rows(int64_t rows) const;
  void run(StepInFlight& step);
  void move_blocks(const StepPlan& plan);
  void* host_block(int32_t host_block_idx);
  void warm_up();
  // hidden: [num_tokens, hidden_size], the address to which a replay of the graph writes.
  struct RecordedStep {
    std::unique_ptr<Recording> graph;
    Tensor hidden;
  };
  RecordedStep& recording_of(const ForwardBatch& batch, Tensor logit_rows, const std::vector<int64_t>& rows_at);
  // Whether the graph of a step also makes its draft tokens. With peers, the draws come behind it. An observer wants
  // what the forward pass left.
  bool records_drafts() const { return drafter_ && !has_peers() && !observer_; }
  void make_drafts(const ForwardBatch& batch, Tensor hidden, const std::vector<int64_t>& rows_at);
  Tensor compute(const ForwardBatch& batch, Tensor logit_rows, const std::vector<int64_t>& rows_at);
  Tensor logits(int64_t rows) const { return logits_.tensor(DType::f32, {rows, vocab_size_}); }
  Range compute_logits(Tensor hidden, const std::vector<int32_t>& rows);
  std::vector<TokenLogprobs> compute_logprobs(Tensor logits, Range own, std::span<const int32_t> token_ids,
                                              int64_t top);
  void score_prompt(StepInFlight& step, size_t chunk, Tensor hidden, int64_t first_row);
  // The draws of a step that this rank makes: those from its rows of logits.
  struct OwnDraws {
    std::vector<SamplingRow> rows;
    Range mine;  // among all draws
  };
  OwnDraws own_draws(const StepInFlight& step, std::span<const int32_t> logits_rows, Range own) const;
  void sample(StepInFlight& step, const ForwardBatch& batch, const OwnDraws& draws, Range own);
  bool has_peers() const { return model_.shard().world() > 1; }

  Ops& ops_;
  Device& device_;
  Model& model_;
  KvCache& cache_;
  RunnerLimits limits_;
  int64_t vocab_size_;
  StepObserver* observer_ = nullptr;
  BatchBuffers batch_buffers_;
  Buffer logits_;                     // [max_draws of this rank, vocab_size] f32
  Buffer logit_rows_;                 // [max_draws] i32
  Buffer all_rows_;                   // [max_draws] i32: 0, 1, 2, ...
  Buffer sampled_ids_;                // [max_draws] i32, read by the next step
  std::vector<int32_t> zeros_;        // [max_draws]
  std::unique_ptr<Drafter> drafter_;  // null: the MTP layer makes no draft tokens
  // What a recorded graph depends on: rows and context bucket of a step that only decodes, the passes of its draft
  // tokens and their rows.
  struct RecordedShape {
    int64_t num_tokens, context;
    bool with_mtp;
    int64_t num_drafts, num_drafting;
    auto operator<=>(const RecordedShape&) const = default;
  };
  std::map<RecordedShape, RecordedStep> recordings_;
  std::vector<HostBuffer> host_slabs_;  // host_slab_blocks_ swapped-out blocks in each; empty: not used yet
  int64_t host_slab_blocks_;
  int next_slot_ = 0;
};

}  // namespace longcat
