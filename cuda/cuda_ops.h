// The CUDA implementation of Ops. Each area has a file with its kernels and methods, named as in cpp/cpu: gemm.cu in
// gemm/, all others in kernels/. Without nvcc the same files are compiled for the host, and CudaOps runs on an emulated
// device (cuda/emulation).
//
// Activations are bf16. Tests may choose f32, which only plain kernels support.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cuda/device/gpu_device.h"
#include "cuda/kernels/quantize.h"
#include "ops/ops.h"

namespace longcat {

struct GemmProblem;
struct GroupedProblem;

// The rows of a batch that attend absorbed: the generated tokens, and with sparse attention the prompt tokens that
// select.
struct AbsorbedRows {
  int64_t first, count;         // of the batch
  int64_t topk = 0;             // 0: no lists; else tokens from this position on attend to topk selected ones
  bool only_selecting = false;  // other rows are left out

  static AbsorbedRows generated(const ForwardBatch& batch, int64_t topk) { return {0, batch.num_decode_tokens, topk}; }
  static AbsorbedRows prompt(const ForwardBatch& batch, int64_t topk) {
    return {batch.num_decode_tokens, batch.num_tokens() - batch.num_decode_tokens, topk, true};
  }
  // The most positions that a row attends to.
  int64_t context(const ForwardBatch& batch) const {
    return only_selecting ? topk : topk > 0 ? std::min(topk, batch.decode_context) : batch.decode_context;
  }
};

// What MLA decode on tensor cores keeps between its launches (kernels/mla_decode.cu).
struct MlaDecodeMemory {
  Buffer plan, prompt_plan;  // the lists of a step: i32
  Buffer arrivals;           // counters of partial results, 0 between launches: u32
  MlaDecodeMemory(Device& device, int64_t workspace_bytes);
};

class CudaOps final : public Ops {
 public:
  // Workspace for partial results of decode pieces, keys and values of prefill, fp8 rows, and CUTLASS's scheduling
  // data. A token's piece takes 64 KiB (32 heads x 514 values). 256 MiB hold 12 tokens at a context of 327,680 (328
  // pieces), 102 at 8,192 (40 pieces), 256 at 2,048 (16 pieces). A position's keys and values take 16 KiB (32 heads):
  // 256 MiB hold 16,384 positions, and of longer prompts some heads at a time.
  static constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;

  // workspace_bytes changes no result. On tensor cores MLA decode throws where it does not hold the pieces of a token,
  // MLA prefill where it does not hold one head of a prompt: 512 bytes a position.
  CudaOps(std::unique_ptr<GpuDevice> device, DType activation_dtype, int64_t workspace_bytes = kWorkspaceBytes);

  GpuDevice& device() override { return *device_; }
  int num_threads() const override { return 1; }
  DType activation_dtype() const override { return activation_dtype_; }

  Weight prepare(const Weight& logical, Buffer& storage) override;
  Weight prepare_router(const Weight& logical, Buffer& storage) override;
  int64_t fp8_row_multiple() const override;
  std::span<const Placement> table_placements() const override;
  Weight quantize_fp8(const Weight& logical, Buffer& storage) override;
  Weight first_rows(const Weight& weight, int64_t rows, Buffer& storage) override;
  Weight prepare_table(const Weight& logical, Placement placement, const ReadPlane& read, Buffer& storage,
                       HostBuffer& host_storage) override;

  void begin_step(const ForwardBatch& batch) override { num_generated_ = batch.num_decode_tokens; }
  void select_token_ids(Tensor token_ids, Tensor sampled_ids, Tensor sources) override;
  void ngram_lookup(Tensor ids, Tensor rows, Tensor lane, const ForwardBatch& batch, const NgramTables& ngram) override;
  void embed(Tensor out, Tensor token_ids, const Weight& word, int64_t first_word, Tensor rows,
             const Weight& projection, float scale) override;

  void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) override;
  void add_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor weight, float eps) override;
  void add(Tensor x, Tensor y) override;
  void add_scaled_rows(Tensor x, Tensor y, Tensor row_weight) override;
  void add_shortcut_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor routed, Tensor y, Tensor row_weight,
                             Tensor weight, float eps) override;

  void linear(Tensor out, Tensor x, const Weight& weight) override;
  void linear_pair(Tensor out_a, Tensor out_b, Tensor x, const Weight& weight_a, const Weight& weight_b) override;
  void linear_per_head(Tensor out, Tensor x, const Weight& weight) override;
  void silu_mul(Tensor out, Tensor gate, Tensor up) override;
  void linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) override;

  void rope_angles(Tensor cos, Tensor sin, Tensor positions, Tensor inv_freq, float factor) override;
  void rope(Tensor x, Tensor cos, Tensor sin) override;
  void mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                 const ForwardBatch& batch) override;
  void mla_norm_store(Tensor q_a, Tensor q_a_norm, Tensor latents, Tensor kv_a, Tensor kv_a_norm, float eps, Tensor cos,
                      Tensor sin, const ForwardBatch& batch) override;
  void plan_decode(const ForwardBatch& batch, const MlaShape& shape, DType latents, int64_t topk) override;
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
  void moe_experts(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x, const Routing& routing,
                   const ExpertWeights& experts) override;

  void gather_rows(Tensor out, Tensor x, Tensor rows) override;
  void merge_vocab_parts(Tensor out, Tensor parts) override;
  void set_sampling_rows(std::span<const SamplingRow> rows, std::span<const SamplingRow> choices = {}) override;
  void sample(Tensor token_ids, Tensor logits, Tensor lane, Tensor block_tables, Tensor choice = {}) override;
  void accept_drafts(DraftRows& drafts, Tensor token_ids, Tensor sampled_ids, Tensor lane,
                     const ForwardBatch& batch) override;
  void extend_drafts(DraftRows& drafts, Tensor token_ids, Tensor last, Tensor lane, int64_t depth) override;
  void token_logprobs(Tensor logprobs, Tensor ids, Tensor ranks, Tensor logits, Tensor token_ids) override;

 private:
  static constexpr int64_t kSamplingRowsAtOnce = 64, kSelectionRowsAtOnce = 256;

  bool decodes_on_tensor_cores(DType latents, int64_t num_heads, int64_t kv_lora_rank, int64_t rope_dim) const;
  // Absorbed attention of some rows; the tensors have these rows. selected: empty without sparse attention.
  void attend_absorbed(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                       const ForwardBatch& batch, const AbsorbedRows& rows, float scale);
  // The same for the shapes that have tensor-core kernels. Returns false for others.
  bool attend_on_tensor_cores(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                              const ForwardBatch& batch, const AbsorbedRows& rows, float scale);
  // mla_prefill() of the tokens before position `end`; other rows of `out` stay.
  void attend_materialised(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                           const ForwardBatch& batch, float scale, int64_t end);
  // The same for the shapes that have tensor-core kernels. Returns false for others.
  bool prefill_on_tensor_cores(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                               const ForwardBatch& batch, float scale, int64_t end);

  // Whether a tensor-core kernel computes the index scores.
  bool scores_on_tensor_cores(Tensor q, Tensor index_keys) const;

  // out = x W^T * scale, or with `add`, out = (x W^T + out) * scale.
  void gemm(Tensor out, Tensor x, const Weight& weight, bool add, float scale);
  // out[row] = x[row] W_e^T for the rows of each expert e. Without expert_offsets, one expert has all rows.
  void grouped_linear(Tensor out, Tensor x, const int32_t* expert_offsets, std::span<const Weight> weights);
  void grouped_linear(Tensor out, const Fp8Rows& x, const int32_t* expert_offsets, std::span<const Weight> weights);
  void run_grouped(const GroupedProblem& problem, std::span<const Weight> weights);
  // out[row] = silu(x[row] G_e^T) * (x[row] U_e^T), by one kernel. Returns false where a device has none.
  bool gate_up(Tensor out, Tensor x, const int32_t* expert_offsets, std::span<const Weight> gates,
               std::span<const Weight> ups);

  // Whether a kernel for few tokens computes this layer.
  bool takes_few_tokens(const GemmProblem& problem) const;
  // The permutation of the rows of each expert here, by the picks in `routing`.
  void permute(const Routing& routing);
  // moe_experts() of tokens that all have the same arithmetic. rounds_inputs: to fp8.
  void experts_of_one_kind(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x,
                           const Routing& routing, const ExpertWeights& experts, bool rounds_inputs);
  // The experts' matrices by rows in permuted order. permuted: [rows, dim], their outputs; gate, up: [rows,
  // expert_ffn].
  void permuted_experts(Tensor permuted, Tensor gate, Tensor up, Tensor x, const Routing& routing,
                        const ExpertWeights& experts, bool rounds_inputs);
  // The same for packed experts and codes, whose kernels gather x. inner: [rows, expert_ffn].
  void sliced_experts(Tensor permuted, Tensor inner, Tensor x, const Routing& routing, const ExpertWeights& experts);
  bool multiplies_packed(const ExpertWeights& experts) const;
  bool multiplies_codes(const ExpertWeights& experts) const;
  // Whether moe_experts() of at most 64 tokens may read Routing::expert_list.
  bool lists_experts(const Routing& routing, Tensor x) const;

  Weight prepare_packed(const Weight& logical, Buffer& storage);
  // Whether a kernel on tensor cores multiplies this packed weight, whatever the number of tokens.
  bool multiplies_packed(const Weight& weight) const;

  // Whether prompt tokens meet this weight as fp8 rows on this device.
  bool multiplies_fp8(const Weight& weight) const;
  // Whether a kernel on tensor cores multiplies this fp8 weight with inputs that are not rounded.
  bool multiplies_codes(const Weight& weight) const;
  // The rows of linear() whose inputs are not rounded to fp8: generated tokens, then perhaps all others.
  int64_t num_exact_rows(Tensor out, Tensor x, const Weight& weight) const;
  // Gives blocks of an fp8 weight that have a NaN a scale that is one.
  void spread_nans(const Weight& weight, int64_t num_scales);
  void linear_fp8_rows(Tensor out, Tensor x, const Weight& weight);
  // Row i of out = row rows[i] of x (without rows: row i) in fp8, for all rows of the experts.
  void quantize_rows(const Fp8Rows& out, Tensor x, const int32_t* rows, const int32_t* expert_offsets,
                     int64_t num_experts);

  const Buffer& workspace() const { return device_->in_branch() ? branch_workspace_ : workspace_; }
  void allocate_sampling_rows(int64_t bytes);

  std::unique_ptr<GpuDevice> device_;
  DType activation_dtype_;
  int64_t num_generated_ = 0;            // of the step's rows, which come first
  Buffer workspace_, branch_workspace_;  // each for one op at a time: main stream, branch stream
  Buffer router_counts_;                 // masks and the counter of RouterPicks: zero between its launches
  MlaDecodeMemory decode_memory_;
  Buffer sampling_rows_;                // sampling rows and the data of their spans, packed
  std::vector<std::byte> packed_rows_;  // the same on the host
  Buffer sampling_rows_address_;        // [1] of sampling_rows_
  Buffer sampling_states_;              // [kSamplingRowsAtOnce] gpu::SamplerState
  Buffer sampling_bins_;                // [kSamplingRowsAtOnce, gpu::Sampler::kBins] u64, zero between calls
  Buffer selection_states_;             // [kSelectionRowsAtOnce] gpu::SelectionState, zero between calls
  Buffer selection_bins_;               // [kSelectionRowsAtOnce, gpu::Selection::kBins] u32, zero between calls
};

}  // namespace longcat
