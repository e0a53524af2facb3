// LongCat-Flash: the forward pass over Ops, on one rank or on one of several, each with its share of the weights.
#pragma once

#include "model/activations.h"
#include "model/kv_cache.h"
#include "model/rope_scaling.h"
#include "model/weights.h"

namespace longcat {

class Model {
 public:
  // max_tokens: largest step. max_logits: most rows that logits() is asked for at once. weights: those of ranks.shard.
  // `ops` must outlive the model.
  Model(Ops& ops, const ModelConfig& config, Ranks ranks, ModelWeights weights, int64_t max_tokens, int64_t max_logits);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const Shard& shard() const { return ranks_.shard; }
  Communicator& world() { return *ranks_.world; }
  void abort_ranks(const std::string& reason) noexcept;  // Communicator::abort
  void launch(Recording& recorded);                      // of calls below; Communicator::launch_recorded

  // Runs all layers over the batch, storing its latents and token ids in the cache. Returns the final hidden states
  // [num_tokens, hidden_size], valid until the next call.
  Tensor forward(const ForwardBatch& batch, KvCache& cache);

  // The MTP layer over the rows of `batch`, whose token_ids are what comes behind the tokens of the rows of the last
  // pass, forward() or this one: its hidden states become those that the token after that is told from, for logits().
  // Row i goes on from row rows[i] of the last pass; no `rows`: from row i. Stores the layer's latents at the positions
  // of the batch (slot p for the pair of hidden state p and token p + 1).
  void forward_mtp(const ForwardBatch& batch, KvCache& cache, Tensor rows = {});

  // Which of so many rows this rank gets the logits of: the ranks take blocks of own_logits_capacity() rows each, the
  // last ones perhaps fewer or none.
  Range own_logits(int64_t num_rows) const;
  int64_t own_logits_capacity(int64_t num_rows) const { return (num_rows + shard().world() - 1) / shard().world(); }

  // out = lm_head of the given rows of the last step's hidden states, own_logits() of them. Every rank computes its
  // words of all rows, then each row's come together on the rank that owns it. out: [own rows, vocab_size] f32; rows:
  // [num_rows] i32, at most as many as the step had tokens. Overwrites buffers of the step, not its hidden states.
  void logits(Tensor out, Tensor rows);

  // Rows of the N-gram tables the last step looked up: [num_tokens, num_tables] i32, empty without tables.
  Tensor last_ngram_ids() const { return a_.ngram_ids; }

 private:
  void embed(const ForwardBatch& batch, KvCache& cache);
  void rope_angles(const ForwardBatch& batch);
  void decoder_layer(int64_t layer_idx, const ForwardBatch& batch, KvCache& cache);
  void attention(const AttentionWeights& weights, Tensor latents, const ForwardBatch& batch);
  void ffn(const FfnWeights& weights, Tensor h);
  void moe(const MoeWeights& weights, Tensor num_real_tokens);

  Ops& ops_;
  ModelConfig config_;
  Ranks ranks_;
  ModelWeights weights_;
  RopeScaling rope_;
  float softmax_scale_;
  Buffer inv_freq_;  // [rope / 2] f32
  ActivationBuffers buffers_;
  Buffer sent_logits_, received_logits_;  // [max_logits, words of a rank] f32, with several ranks
  Activations a_;                         // views for the step in progress
};

}  // namespace longcat
