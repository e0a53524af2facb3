// LongCat-Flash: the forward pass over Ops.
#pragma once

#include "model/activations.h"
#include "model/kv_cache.h"
#include "model/rope_scaling.h"
#include "model/weights.h"

namespace longcat {

class Model {
 public:
  // max_tokens: largest step. `ops` must outlive the model.
  Model(Ops& ops, const ModelConfig& config, ModelWeights weights, int64_t max_tokens);

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }

  // Runs all layers over the batch, storing its latents and token ids in the cache. Returns the final hidden states
  // [num_tokens, hidden_size], valid until the next call.
  Tensor forward(const ForwardBatch& batch, KvCache& cache);

  // out = lm_head of the given rows of the last step's hidden states. out: [num_rows, vocab_size] f32;
  // rows: [num_rows] i32, at most as many as the step had tokens. Overwrites buffers of the step, not its hidden
  // states.
  void logits(Tensor out, Tensor rows);

  // Rows of the N-gram tables the last step looked up: [num_tokens, num_tables] i32, empty without tables.
  Tensor last_ngram_ids() const { return a_.ngram_ids; }

 private:
  void embed(const ForwardBatch& batch, KvCache& cache);
  void decoder_layer(int64_t layer_idx, const ForwardBatch& batch, KvCache& cache);
  void attention(const AttentionWeights& weights, Tensor latents, const ForwardBatch& batch);
  void ffn(const FfnWeights& weights, Tensor h);
  void moe(const MoeWeights& weights, Tensor num_real_tokens);

  Ops& ops_;
  ModelConfig config_;
  ModelWeights weights_;
  RopeScaling rope_;
  float softmax_scale_;
  Buffer inv_freq_;  // [rope / 2] f32
  ActivationBuffers buffers_;
  Activations a_;  // views for the step in progress
};

}  // namespace longcat
