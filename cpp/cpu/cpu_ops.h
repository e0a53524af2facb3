// The CPU implementation of Ops: plain and readable. Each area has its file: draft_head.cpp, drafts.cpp,
// elementwise.cpp, moe.cpp, ngram_embed.cpp and sample.cpp here, gemm.cpp in gemm/, and rope.cpp, attention.cpp,
// attention_prefill.cpp and selection.cpp in attention/.
#pragma once

#include <vector>

#include "base/thread_pool.h"
#include "cpu/cpu_device.h"
#include "cpu/gemm/packed_matmul.h"
#include "ops/ops.h"

namespace longcat {

class CpuOps : public Ops {
 public:
  explicit CpuOps(int num_threads) : device_(num_threads), pool_(num_threads) {}

  Device& device() override { return device_; }
  int num_threads() const override { return pool_.num_threads(); }

  bool reads_latents(DType) const override { return true; }
  bool reads_index_keys(DType) const override { return true; }
  void use_dtype(DType dtype) override;
  Weight prepare(const Weight& logical, Buffer& storage) override;
  Weight prepare_lookup(const Weight& logical, Buffer&) override { return logical; }  // a row stays in one place
  Weight quantize_fp8(const Weight& logical, Buffer& storage) override;
  Weight draft_head(const Weight& head, Buffer& storage) override;

  void select_token_ids(Tensor token_ids, Tensor sampled_ids, Tensor sources) override;
  void ngram_lookup(Tensor ids, Tensor rows, Tensor lane, const ForwardBatch& batch, const NgramTables& ngram) override;
  void embed(Tensor out, Tensor token_ids, const Weight& word, int64_t first_word, Tensor rows,
             const Weight& projection, float scale) override;

  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override;
  void add_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor weight, float eps) override;
  void add(Tensor x, Tensor y) override;
  void add_scaled_rows(Tensor x, Tensor y, Tensor row_weight) override;

  void linear(Tensor out, Tensor x, const Weight& weight) override;
  void linear_per_head(Tensor out, Tensor x, const Weight& weight) override;
  void linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) override;
  void silu_mul(Tensor out, Tensor gate, Tensor up) override;

  void rope_angles(Tensor cos, Tensor sin, Tensor positions, Tensor inv_freq, float factor) override;
  void rope(Tensor x, Tensor cos, Tensor sin) override;
  void mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                 const ForwardBatch& batch) override;
  void mla_decode(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                  float scale) override;
  void mla_prefill(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                   const ForwardBatch& batch, float scale) override;

  void index_store(Tensor index_keys, Tensor k, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                   const ForwardBatch& batch) override;
  void select_positions(Tensor selected, Tensor q, Tensor head_weights, Tensor index_keys, const ForwardBatch& batch,
                        const SelectionRule& rule, float scale) override;
  void extend_selection(Tensor selected, Tensor rows, Tensor positions) override;
  void mla_decode_selected(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                           const ForwardBatch& batch, float scale) override;
  void mla_prefill_selected(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                            Tensor selected, Tensor q_latent, Tensor latent_out, const ForwardBatch& batch,
                            float scale) override;

  void moe_route(Routing& routing, Tensor scratch, Tensor x, const Weight& classifier, Tensor bias,
                 Tensor num_real_tokens, int64_t n_routed_experts, int64_t first_expert, float scaling_factor) override;
  void read_experts_ahead(const Routing& routing, const ExpertWeights& experts) override;
  void moe_experts(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x, const Routing& routing,
                   const ExpertWeights& experts) override;

  void gather_rows(Tensor out, Tensor x, Tensor rows) override;
  void merge_vocab_parts(Tensor out, Tensor parts) override;
  void set_sampling_rows(std::span<const SamplingRow> rows, std::span<const SamplingRow> choices = {}) override {
    sampling_rows_.assign(rows.begin(), rows.end());
    sampling_choices_.assign(choices.begin(), choices.end());
  }
  void sample(Tensor token_ids, Tensor logits, Tensor lane, Tensor block_tables, Tensor choice = {}) override;
  void accept_drafts(DraftRows& drafts, Tensor token_ids, Tensor sampled_ids, Tensor lane,
                     const ForwardBatch& batch) override;
  void extend_drafts(DraftRows& drafts, Tensor token_ids, Tensor last, Tensor lane, int64_t depth) override;
  void token_logprobs(Tensor logprobs, Tensor ids, Tensor ranks, Tensor logits, Tensor token_ids) override;

 private:
  // x in the forms that the weights' formats need: in 8 bits, and rounded to bf16 for bf16 and bf16_x8 when use_dtype()
  // said so. nullptr when there are none. Valid until the next call.
  const cpu::QuantizedInputs* quantize_for(std::initializer_list<std::span<const Weight>> weights, Tensor x);
  // For all rows of x and one weight: also in tiles, where these multiply it.
  const cpu::QuantizedInputs* quantize_for(const Weight& weight, Tensor x);

  // Absorbed attention of the batch's rows [first_row, first_row + out.size(0)). Without `selected`, all of them attend
  // to every visible position. Row i of the tensors is row first_row + i of the batch.
  void attend_absorbed(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                       const ForwardBatch& batch, int64_t first_row, float scale);

  // mla_prefill of the prompt tokens at positions below end_position.
  void attend_materialised(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                           const ForwardBatch& batch, float scale, int64_t end_position);

  CpuDevice device_;
  ThreadPool pool_;
  cpu::QuantizedInputs quantized_;
  bool rounds_inputs_ = false;
  std::vector<SamplingRow> sampling_rows_, sampling_choices_;
};

}  // namespace longcat
