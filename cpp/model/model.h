// LongCat-Flash: the forward pass over Ops, on one rank or on several that share the weights.
#pragma once

#include "model/activations.h"
#include "model/kv_cache.h"
#include "model/rope_scaling.h"
#include "model/weights.h"

namespace longcat {

class Model {
 public:
  // max_tokens: size of the largest step. max_logits: most rows per call of logits(). weights: the weights of
  // ranks.shard. `ops` must outlive the model.
  Model(Ops& ops, const ModelConfig& config, Ranks ranks, ModelWeights weights, int64_t max_tokens, int64_t max_logits);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const Shard& shard() const { return ranks_.shard; }
  Communicator& world() { return *ranks_.world; }
  void abort_ranks(const std::string& reason) noexcept;  // Communicator::abort
  void launch(Recording& recorded);  // launches recorded calls of the functions below; Communicator::launch_recorded

  // Runs all layers over the batch and stores its latents and token ids in the cache. Returns the final hidden states
  // [num_tokens, hidden_size], which are valid until the next call.
  Tensor forward(const ForwardBatch& batch, KvCache& cache);

  // Runs the MTP layer. Row i pairs the hidden state in row rows[i] (row i without `rows`) of the last forward() or
  // forward_mtp() with token_ids[i], the token after that row's. The new hidden states replace the old ones; logits()
  // of row i then predicts the token after token_ids[i]. The layer's latents are stored at the batch's positions (slot
  // p for the pair of hidden state p and token p + 1).
  void forward_mtp(const ForwardBatch& batch, KvCache& cache, Tensor rows = {});

  // The part of `num_rows` rows of logits that this rank gets. The ranks take blocks of own_logits_capacity() rows in
  // order; the last ones may get fewer or none.
  Range own_logits(int64_t num_rows) const;
  int64_t own_logits_capacity(int64_t num_rows) const { return (num_rows + shard().world() - 1) / shard().world(); }

  // out = lm_head of the given rows of the last step's hidden states, for the rows own_logits(). Every rank computes
  // its vocabulary rows of all rows; an all-to-all then collects each row on the rank that owns it. out: [own rows,
  // vocab_size] f32; rows: [num_rows] i32, at most as many as the step's tokens. Overwrites other buffers of the step,
  // but keeps its hidden states.
  void logits(Tensor out, Tensor rows);

  // Rows of the N-gram tables that the last step read: [num_tokens, num_tables] i32, empty without tables.
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
  Buffer sent_logits_, received_logits_;  // [max_logits, vocabulary rows of a rank] f32, with several ranks
  Activations a_;                         // views for the step in progress
};

}  // namespace longcat
