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

  // Adapts to the host memory that is left for views of the checkpoint's file [bytes]. Where experts are such views and
  // the matrices are larger, experts are read from the disk as the router picks them. The rest of the layer is computed
  // meanwhile.
  void fit_into(int64_t available_bytes);
  bool reads_experts_from_disk() const { return reads_experts_from_disk_; }

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const Shard& shard() const { return ranks_.shard; }
  Communicator& world() { return *ranks_.world; }
  std::string way_of_sums() const;                       // between ranks, for people; empty where there is one way
  void abort_ranks(const std::string& reason) noexcept;  // Communicator::abort
  void launch(Recording& recorded);  // launches recorded calls of the functions below; Communicator::launch_recorded

  // Runs all layers over the batch and stores its latents and token ids in the cache. Returns the final hidden states
  // [num_tokens, hidden_size], which are valid until the next call.
  Tensor forward(const ForwardBatch& batch, KvCache& cache);

  // Runs the MTP layer over `batch`. Row i combines its token with the hidden state of the token before it. That is row
  // rows[i] of `hidden`, which forward() or this call returned; without `rows`, it is row i. Stores the layer's latents
  // at the positions of the batch (slot p for the pair of hidden state p and token p + 1). Returns the hidden states
  // [num_tokens, hidden_size] that predict the token after, valid until the next call. With sparse attention, a call
  // with `rows` uses the selections of the call before it, and the positions of the batch. Its tokens are at the
  // positions after those of the rows.
  Tensor forward_mtp(const ForwardBatch& batch, KvCache& cache, Tensor hidden, Tensor rows = {});

  // Stores the latents that forward_mtp() would, and computes nothing else: a fifth of its weights.
  void store_mtp(const ForwardBatch& batch, KvCache& cache, Tensor hidden);

  // The rows, of num_rows, whose logits this rank gets. Each rank has own_logits_capacity() of them, the last ranks
  // fewer or none.
  Range own_logits(int64_t num_rows) const;
  int64_t own_logits_capacity(int64_t num_rows) const { return (num_rows + shard().world() - 1) / shard().world(); }

  // out = lm_head(hidden[rows]), of the rows that own_logits() gives this rank. Every rank computes its part of the
  // vocabulary for all rows; an all-to-all then brings the parts of a row to its rank. out: [own rows, vocab_size] f32;
  // hidden: of forward() or forward_mtp(); rows: [num_rows] i32, at most max_tokens. Overwrites buffers of the step,
  // not `hidden`.
  void logits(Tensor out, Tensor hidden, Tensor rows) { logits(out, hidden, rows, weights_.lm_head); }

  // The same with the head for draft tokens (MtpWeights::head), of draft_vocab() ids.
  int64_t draft_vocab() const { return shard().world() > 1 ? config_.vocab_size : weights_.mtp->head.out_features; }
  void draft_logits(Tensor out, Tensor hidden, Tensor rows) { logits(out, hidden, rows, weights_.mtp->head); }

  // Rows of the N-gram tables that the last step read: [num_tokens, num_tables] i32, empty without tables.
  Tensor last_ngram_ids() const { return a_.ngram_ids; }

  // The buffers of the last step. Those of a sub-layer hold what its last layer computed.
  const Activations& activations() const { return a_; }

 private:
  void embed(const ForwardBatch& batch, KvCache& cache);
  void prepare_attention(const ForwardBatch& batch, const KvCache& cache);
  void logits(Tensor out, Tensor hidden, Tensor rows, const Weight& head);
  void embed_mtp(const ForwardBatch& batch, const KvCache& cache, Tensor hidden, Tensor rows);
  void decoder_layer(int64_t layer_idx, const ForwardBatch& batch, KvCache& cache);
  void attention(const AttentionWeights& weights, Tensor latents, Tensor index_keys, const ForwardBatch& batch);
  bool may_select(const ForwardBatch& batch) const;
  Tensor mtp_index_keys(const KvCache& cache) const;
  void store_index_keys(const IndexerWeights& weights, Tensor index_keys, const ForwardBatch& batch);
  void select_positions(const IndexerWeights& weights, Tensor index_keys, const ForwardBatch& batch);
  Tensor selected() const { return a_.selected.slice(1, 0, config_.sparse->index_topk + num_drafts_); }
  void ffn(const FfnWeights& weights, Tensor h);
  Tensor join_experts();
  void route(const MoeWeights& weights, Tensor num_real_tokens);
  void experts(const MoeWeights& weights);

  Ops& ops_;
  ModelConfig config_;
  Ranks ranks_;
  ModelWeights weights_;
  RopeScaling rope_;
  float softmax_scale_, inner_norm_eps_;
  Buffer inv_freq_;  // [rope / 2] f32
  ActivationBuffers buffers_;
  Buffer sent_logits_, received_logits_;  // [max_logits, vocabulary rows of a rank] f32, with several ranks
  Tensor selection_rows_;                 // of forward_mtp(): rows whose selections are used again; else empty
  bool reads_experts_from_disk_ = false;  // fit_into()
  int64_t num_drafts_ = 0;                // positions that these selections have beside index_topk
  Activations a_;                         // views for the step in progress
};

}  // namespace longcat
