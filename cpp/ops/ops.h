// The operations of a backend: more than twenty, each as large as a fused kernel. The model is written once over this
// class; cpp/cpu and cuda implement it.
//
// Conventions:
// - Outputs come first, then inputs, then scalars. Views are passed by value. An operation allocates nothing.
// - Activations have activation_dtype() where no dtype is given.
// - T = num_tokens is the first extent of the activations, whose rows are tokens.
// - "Here" means on this rank.
//
// Invariance contract, tested on each backend. The bits of a token's result depend on the token and its own history
// only. They do not depend on the rest of the batch, padding, the number of threads or chunk boundaries.
//   1. Each op has one accumulation order per weight format, whatever the number of rows.
//   2. A token's kind selects its arithmetic. mla_prefill computes prompt tokens, even one alone in a chunk. mla_decode
//      computes generated tokens, even when they are recomputed. The inputs of fp8 layers may be rounded to fp8 for
//      prompt tokens, and never for generated ones. Both attentions split the history into fixed pieces by absolute
//      position (kPrefillTile, kv_piece_end) and combine the partial results in ascending order. With sparse attention,
//      a token whose visible positions are not all selected has one arithmetic, whatever its kind.
//   3. Attention reads stored latents only: a latent is first rounded to the cache format and written. Slots after a
//      token's position are never read, because a recycled block may hold NaN there.
//   4. Ties go to the lowest id. Expert outputs are summed per token in ascending expert id. Sums use no atomics.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/device.h"
#include "base/tensor.h"
#include "ops/batch.h"
#include "ops/drafts.h"
#include "ops/weight.h"

namespace longcat {

constexpr int kMaxNgram = 16;  // longest N-gram (emb_neighbor_num) an op accepts

// Size and end of the attention piece that contains `position`. Pieces have 128 tokens up to position 2k, 256 up to
// 16k, 512 up to 64k, 1,024 up to 128k, and 2,048 beyond. From 1k on, a piece is at most an eighth of the positions
// before it, so that one long request occupies a GPU of 132 multiprocessors. Long pieces keep the number of partial
// results low.
constexpr int64_t kMaxKvPiece = 2048;
constexpr int64_t kv_piece_size(int64_t position) {
  return position < 2048     ? 128
         : position < 16384  ? 256
         : position < 65536  ? 512
         : position < 131072 ? 1024
                             : kMaxKvPiece;
}
constexpr int64_t kv_piece_end(int64_t position) {
  const int64_t piece = kv_piece_size(position);
  return (position / piece + 1) * piece;
}

// Number of positions whose keys and values mla_prefill materialises at once; tiles start at position 0.
constexpr int64_t kPrefillTile = kBlockSize;

// The hashed N-gram tables. Table t = (order - 2) * splits + split; all have the same width. A row id is the same on
// all ranks. The tables here are consecutive; the first may lack rows at its begin, the last at its end.
struct NgramTables {
  std::span<const Weight> tables;  // [rows here, table_dim] each, for t = first_table..
  int64_t first_table = 0;
  int64_t first_row = 0;            // id of the first row of tables[0]; the other tables begin with row 0
  std::span<const int64_t> moduli;  // [num_tables] number of rows of table t, on all ranks
  std::span<const int64_t> powers;  // [num_tables, max_order - 1] vocab_size^d mod moduli[t], d = 1..max_order-1
  int64_t max_order = 1;            // emb_neighbor_num; 1: no tables
  int64_t splits = 0;               // emb_split_num
  int32_t eos_token_id = 2;

  // Index of row `id` in tables[i], or -1 when the row is not here.
  int64_t row_here(int64_t i, int64_t id) const {
    const int64_t row = i == 0 ? id - first_row : id;
    return 0 <= row && row < tables[static_cast<size_t>(i)].out_features ? row : -1;
  }
};

// The experts of each token, with their weights. The picks of a token are in ascending expert id.
struct Routing {
  Tensor expert_idx;       // [T, moe_topk] i32; an identity expert is >= n_routed_experts
  Tensor expert_weights;   // [T, moe_topk] f32, routed_scaling_factor included
  Tensor identity_weight;  // [T] f32, sum of the weights of the token's identity picks
  Tensor expert_offsets;   // [experts here + 1] i32, prefix sums of the rows per expert, in permuted order
  Tensor permuted_tokens;  // [T * moe_topk] i32, token of each permuted row, ascending within an expert
  Tensor permuted_rows;    // [T, moe_topk] i32, permuted row of each pick; -1 when its expert is not here
  // [1 + 3 * experts here] i32 or empty: the number of experts with rows, then (expert, first row, end) of each, in
  // ascending order. moe_route() writes it where moe_experts() of the same backend reads it.
  Tensor expert_list = {};
  int64_t first_expert = 0;  // moe_route() sets it
};

struct ExpertWeights {
  std::span<const Weight> gate_proj, up_proj;  // [experts here] of [expert_ffn_hidden_size, hidden_size]
  std::span<const Weight> down_proj;           // [experts here] of [hidden_size, expert_ffn_hidden_size]
};

struct MlaShape {
  int64_t num_heads, kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
};

// How many positions sparse attention selects for a token at position p, and which ones always: j < init_tokens and
// j > p - local_tokens.
struct SelectionRule {
  int64_t topk, init_tokens, local_tokens;
};

struct LogitBias {
  int32_t token_id;
  float bias;
};

// How the next token of one row is sampled. The penalties read the history from the token lane.
struct SamplingRow {
  double temperature = 1;         // 0: greedy
  int32_t top_k = 0;              // 0: off
  double top_p = 1;               // 1: off
  double min_p = 0;               // 0: off; fraction of the largest probability
  double repetition_penalty = 1;  // 1: off; over prompt and output
  double presence_penalty = 0;    // subtracted once for every id in the output
  double frequency_penalty = 0;   // subtracted for every occurrence in the output
  uint64_t seed = 0;
  int32_t sample_idx = 0;         // index among the n completions of a request
  int32_t logits_row = 0;         // row of the logits; several completions may share one
  int32_t sequence = 0;           // row of the batch's block_tables
  int32_t position = 0;           // of the last token of the history; the sampled token gets position + 1
  int32_t num_prompt_tokens = 0;  // positions below this are prompt
  // Each id once.
  std::span<const LogitBias> logit_bias = {};
  // Token sequences: the last id is removed when the history ends with the others.
  std::span<const std::vector<int32_t>> bad_words = {};
  std::span<const int32_t> banned_ids = {};   // removed
  std::span<const int32_t> allowed_ids = {};  // all other ids are removed; empty: none is
  // [ceil(vocab / 32)] id 32 w + i stays when bit i of word w is set; empty: all stay
  std::span<const uint32_t> mask = {};
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual Device& device() = 0;
  virtual int num_threads() const = 0;  // host threads that compute

  // The dtype of activations between operations: f32 or bf16.
  virtual DType activation_dtype() const { return DType::f32; }

  // The model's dtype, before anything else is called. Under bf16, a backend may round the inputs of products with bf16
  // weights or index keys to bf16, as the reference does.
  virtual void use_dtype(DType) {}

  // The placements that prepare_table() supports for N-gram tables, the default first.
  virtual std::span<const Placement> table_placements() const;

  // Whether attention supports latents of this dtype.
  virtual bool reads_latents(DType dtype) const { return dtype != DType::i8; }

  // Whether the indexer supports index keys of this dtype.
  virtual bool reads_index_keys(DType dtype) const { return dtype != DType::i8; }

  // Converts `logical`, whose planes are in host memory, to the form that linear() reads fastest. Called once per
  // matrix, at load. New planes go to `storage`; without any, the result is a view of the same memory.
  virtual Weight prepare(const Weight& logical, Buffer& storage) = 0;

  // Like prepare(), for f32 layers that choose: the classifier of moe_route(), and weights_proj of the indexer.
  virtual Weight prepare_router(const Weight& logical, Buffer& storage) { return prepare(logical, storage); }

  // Like prepare(), for a bf16 or f32 matrix in memory of which single rows are read: embeddings and tables. The
  // default is prepare().
  virtual Weight prepare_lookup(const Weight& logical, Buffer& storage) { return prepare(logical, storage); }

  // linear() is fastest on a matrix of fp8 blocks whose rows are a multiple of this number. The loader appends rows of
  // zeros where the output has room for them.
  virtual int64_t fp8_row_multiple() const { return 1; }

  // Converts `logical` (f32 or bf16) to fp8 blocks, in the form of prepare(). The scale of a block is its largest
  // magnitude / 448. The planes go to `storage`.
  virtual Weight quantize_fp8(const Weight& logical, Buffer& storage) = 0;

  // Returns the head that draws draft tokens, which may differ from `head`: a wrong draft token costs time alone.
  // `head` is a result of prepare(). New planes go to `storage`. The default is `head`.
  virtual Weight draft_head(const Weight& head, Buffer& storage);

  // The first `rows` rows of `weight`, a result of prepare(): a multiple of 128. A view, but for planes that do not lie
  // so; those go to `storage`.
  virtual Weight first_rows(const Weight& weight, int64_t rows, Buffer& storage);

  // Like prepare(), for an N-gram table, which is only read by single rows. The result is at `placement`, one of
  // table_placements(). `read(to, begin, bytes)` copies bytes of the table's data plane without mapping them. The
  // default is prepare().
  using ReadPlane = std::function<void(void* to, int64_t begin, int64_t bytes)>;
  virtual Weight prepare_table(const Weight& logical, Placement placement, const ReadPlane& read, Buffer& storage,
                               HostBuffer& host_storage);

  // Called before the other operations on the rows of a batch. Layers whose result is an activation then take row i as
  // the batch's token i, which may be a generated one (invariance contract, rule 2). The default does nothing.
  virtual void begin_step(const ForwardBatch& /*batch*/) {}

  // --- embedding -------------------------------------------------------------------------------------------------
  // token_ids[t] = sampled_ids[sources[t]] where sources[t] >= 0. Those ids are from the step before, and the host may
  // not have read them yet. A sampled -1 (see sample) becomes 0, and the result of that row is discarded. token_ids,
  // sources: [T] i32; sampled_ids: [n] i32.
  virtual void select_token_ids(Tensor token_ids, Tensor sampled_ids, Tensor sources) = 0;

  // For each token: writes its id to its slot of the token lane. Hashes the id with up to max_order - 1 predecessors,
  // and gathers one row per table. Predecessors in the same chunk come from the batch, others from the lane.
  //   id_t = (x_p + sum_d s_d * (vocab_size^d mod M_t)) mod M_t, where s_d = x_{p-d}. s_d is 0 before the sequence's
  //   start, or when any of x_{p-d}..x_{p-1} is eos_token_id (modeling_longcat_ngram.py of the published model).
  // ids: [T, num_tables] i32; rows: [T, tables.size() * table_dim], zeros for a row that is not here; lane: [num_slots]
  // i32. Without tables, only the lane is written.
  virtual void ngram_lookup(Tensor ids, Tensor rows, Tensor lane, const ForwardBatch& batch,
                            const NgramTables& ngram) = 0;

  // out = (word[token_ids - first_word] + rows * projection^T) * scale. With an empty `projection`, out is the
  // vocabulary row times scale. Vocabulary rows that are not here count as zeros. out: [T, hidden]; word: [vocabulary
  // rows here, hidden]; projection: [hidden, columns of rows], the tables' projections side by side.
  virtual void embed(Tensor out, Tensor token_ids, const Weight& word, int64_t first_word, Tensor rows,
                     const Weight& projection, float scale) = 0;

  // --- norms and sums --------------------------------------------------------------------------------------------
  // out = x / sqrt(mean(x^2) + eps) * weight. out, x: [T, dim], may be the same buffer; weight: [dim] f32.
  virtual void rms_norm(Tensor out, Tensor x, Tensor weight, float eps) = 0;

  // residual += x (unless x is empty); out = rms_norm(residual). `out` must be another buffer.
  virtual void add_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor weight, float eps) = 0;

  // x += y.
  virtual void add(Tensor x, Tensor y) = 0;

  // x[t] += row_weight[t] * y[t]. row_weight: [T] f32.
  virtual void add_scaled_rows(Tensor x, Tensor y, Tensor row_weight) = 0;

  // The end of a layer: x += routed (unless routed is empty), x += row_weight[t] * y[t], then add_rms_norm. The default
  // calls those operations. The content of x is undefined afterwards. All: [T, dim]; row_weight: [T] f32.
  virtual void add_shortcut_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor routed, Tensor y, Tensor row_weight,
                                     Tensor weight, float eps);

  // --- linear layers ---------------------------------------------------------------------------------------------
  // out = x W^T. out: [T, out_features]; x: [T, in_features].
  virtual void linear(Tensor out, Tensor x, const Weight& weight) = 0;

  // Two linear() of one x. The default calls linear() twice.
  virtual void linear_pair(Tensor out_a, Tensor out_b, Tensor x, const Weight& weight_a, const Weight& weight_b);

  // out[t, h] = x[t, h] W_h^T, where W_h = rows [h * out_dim, (h + 1) * out_dim) of weight. out: [T, heads, out_dim];
  // x: [T, heads, in_features], may be strided.
  virtual void linear_per_head(Tensor out, Tensor x, const Weight& weight) = 0;

  // out = silu(gate) * up. out may be the same buffer as gate.
  virtual void silu_mul(Tensor out, Tensor gate, Tensor up) = 0;

  // out = silu(x gate_proj^T) * (x up_proj^T). scratch: same shape as out. The default is two linear() and silu_mul().
  virtual void linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj);

  // --- attention (MLA) -------------------------------------------------------------------------------------------
  // The rotary angles of a step, for all layers: cos, sin = cos, sin(position * inv_freq) * factor. [T, rope / 2] f32.
  virtual void rope_angles(Tensor cos, Tensor sin, Tensor positions, Tensor inv_freq, float factor) = 0;

  // Rotates interleaved pairs (2j, 2j + 1) of each head in place. x: [T, heads, rope], may be strided.
  virtual void rope(Tensor x, Tensor cos, Tensor sin) = 0;

  // Writes one latent row per token to its slot: [rms_norm(kv_a[:, :kv_lora]) | rope(kv_a[:, kv_lora:])], rounded to
  // the dtype of `latents`. kv_a: [T, kv_lora + rope], overwritten; latents: one sub-layer (batch.h); norm_weight:
  // [kv_lora] f32.
  virtual void mla_store(Tensor latents, Tensor kv_a, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                         const ForwardBatch& batch) = 0;

  // q_a = rms_norm(q_a), then mla_store. The default calls the two.
  virtual void mla_norm_store(Tensor q_a, Tensor q_a_norm, Tensor latents, Tensor kv_a, Tensor kv_a_norm, float eps,
                              Tensor cos, Tensor sin, const ForwardBatch& batch);

  // Prepares absorbed attention of a batch. Called once a step, before the first attention. shape: of the attentions,
  // with the heads here. latents: dtype of the cache. topk: columns of `selected`, or 0 where the step calls no
  // operation with a selection. The default does nothing.
  virtual void plan_decode(const ForwardBatch& /*batch*/, const MlaShape& /*shape*/, DType /*latents*/,
                           int64_t /*topk*/) {}

  // Absorbed attention of the generated tokens, rows [0, D) of the batch with D = num_decode_tokens. A token at
  // position p attends to the stored latents [c_s | k_s] of its own sequence at positions s = 0..p:
  // out[t, h] = sum_s softmax_s((q_latent[t, h] . c_s + q_rope[t, h] . k_s) * scale) c_s.
  // out, q_latent: [D, heads, kv_lora]; q_rope: [D, heads, rope], may be strided; latents as in mla_store.
  virtual void mla_decode(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, const ForwardBatch& batch,
                          float scale) = 0;

  // Materialised attention of the prompt tokens, rows [D, T) of the batch, to the stored latents [c_s | k_s] at
  // positions s = 0..p. With k_s,h = [k_up_h^T c_s | k_s] and v_s,h = v_up_h c_s,
  // out[i, h] = sum_s softmax_s((q[i, h] . k_s,h) * scale) v_s,h for the prompt token of row D + i.
  // out: [T - D, heads, v_head_dim]; q: [T - D, heads, nope + rope], already rotated, may be strided; k_up: [heads *
  // kv_lora, nope]; v_up: [heads * v_head_dim, kv_lora].
  virtual void mla_prefill(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                           const ForwardBatch& batch, float scale) = 0;

  // --- sparse attention (LSA) ------------------------------------------------------------------------------------
  // Writes one index key per token to its slot: rms_norm(k), whose first values are then rotated in pairs (2j, 2j + 1),
  // as many as the angles are for. Rounded to the dtype of index_keys. k: [T, index_head_dim], overwritten; index_keys:
  // one set [num_blocks, 64, index_head_dim] f32 or bf16, or bytes (Int8IndexKey), blocks strided; norm_weight:
  // [index_head_dim] f32.
  virtual void index_store(Tensor index_keys, Tensor k, Tensor norm_weight, float eps, Tensor cos, Tensor sin,
                           const ForwardBatch& batch) = 0;

  // Selects the positions that each token at a position p >= topk attends to, in ascending order. These are the ones
  // that `rule` always selects, and the best of the other positions j <= p. The score of a position is
  //   scale * sum_h head_weights[h] * max(q[h] . key_j, 0).
  // Of equal scores, the lower position is selected. A row with p < topk is left as it is: such a token attends to all
  // visible positions. selected: [T, topk] i32; q: [T, index_n_heads, index_head_dim], already rotated; head_weights:
  // [T, index_n_heads] f32; index_keys as in index_store.
  virtual void select_positions(Tensor selected, Tensor q, Tensor head_weights, Tensor index_keys,
                                const ForwardBatch& batch, const SelectionRule& rule, float scale) = 0;

  // The selection of draft tokens behind the first one: that of the first, and the positions written since. In place,
  // row i becomes the first width - 1 columns of row rows[i], then positions[i]. selected: [n or more, width] i32;
  // rows: [n] i32, ascending; positions: [n] i32.
  virtual void extend_selection(Tensor selected, Tensor rows, Tensor positions) = 0;

  // mla_decode where a token at a position p >= topk attends to the positions of its row of `selected` [D, topk] only.
  // Selected positions are split into pieces by their index in the row, like positions. Other tokens get the bits of
  // mla_decode.
  virtual void mla_decode_selected(Tensor out, Tensor q_latent, Tensor q_rope, Tensor latents, Tensor selected,
                                   const ForwardBatch& batch, float scale) = 0;

  // mla_prefill where a prompt token at a position p >= topk attends to its row of `selected` [T - D, topk] only. It is
  // absorbed, with the arithmetic of mla_decode_selected. Other tokens get the bits of mla_prefill.
  // q_latent, latent_out: [T - D, heads, kv_lora], overwritten.
  virtual void mla_prefill_selected(Tensor out, Tensor q, Tensor latents, const Weight& k_up, const Weight& v_up,
                                    Tensor selected, Tensor q_latent, Tensor latent_out, const ForwardBatch& batch,
                                    float scale) = 0;

  // --- mixture of experts ----------------------------------------------------------------------------------------
  // logits = x classifier^T in f32; g = softmax(logits) over routed and identity experts. The topk largest g + bias are
  // picked (ties: lowest id), with weight g * scaling_factor. Padded rows, from num_real_tokens [1] on, get expert
  // n_routed_experts with weight 0. The permutation covers the experts here: first_expert and the following ones, as
  // many as expert_offsets has. scratch: [T, num_router_outputs] f32.
  virtual void moe_route(Routing& routing, Tensor scratch, Tensor x, const Weight& classifier, Tensor bias,
                         Tensor num_real_tokens, int64_t n_routed_experts, int64_t first_expert,
                         float scaling_factor) = 0;

  // Says that moe_experts() will soon read the experts of `routing`. A backend whose experts may lie on the disk begins
  // to read them. The default does nothing.
  virtual void read_experts_ahead(const Routing& /*routing*/, const ExpertWeights& /*experts*/) {}

  // out[t] = sum of weight * expert(x[t]) over the picks of t whose expert is here, in ascending id. Identity picks are
  // not computed. May order the permuted rows otherwise. hidden, scratch: [T * topk, expert_ffn]; expert_out: [T *
  // topk, hidden_size].
  virtual void moe_experts(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x,
                           const Routing& routing, const ExpertWeights& experts) = 0;

  // --- output ----------------------------------------------------------------------------------------------------
  // out[i] = x[rows[i]]. rows: [num_rows] i32.
  virtual void gather_rows(Tensor out, Tensor x, Tensor rows) = 0;

  // out[r] = parts[0][r], parts[1][r], ... side by side: the logits of a row, of which each rank computed a part of the
  // vocabulary. out: [num_rows, num_parts * part_size] f32; parts: [num_parts, num_rows or more, part_size] f32.
  virtual void merge_vocab_parts(Tensor out, Tensor parts) = 0;

  // Sets how the next sample() calls draw: `rows` one by one, `choices` where a call has a list of them. What the spans
  // name stays valid until this work is done. Not part of a recording.
  virtual void set_sampling_rows(std::span<const SamplingRow> rows, std::span<const SamplingRow> choices = {}) = 0;

  // Samples the next token of each row that is set, in the order of transformers' generate():
  //   1. logit bias, repetition penalty, presence and frequency penalties;
  //   2. removals: bad words, banned, allowed, mask;
  //   3. temperature, top-k (ties with the k-th stay), top-p (among equals the higher id is removed first), min-p;
  //   4. one Gumbel-max draw with Philox4x32-10.
  // The draw's key is the seed and its counter is (token id, position, sample_idx), so it does not depend on the batch.
  // A recording of this call draws as is set when it is launched.
  // token_ids: [at least as many as rows] i32, unchanged behind the rows. It is -1 for a row whose logits hold a NaN or
  // +infinity, or whose ids are all removed. logits: [num_logits, vocab] f32, unchanged; lane as in ngram_lookup;
  // block_tables: of the batch. What the rows say of ids from `vocab` on counts for nothing.
  // choice: [as many as token_ids] i32 or empty. Row i is then drawn as choices[choice[i]]; it is unchanged where that
  // is negative. So the device decides how a row is drawn.
  virtual void sample(Tensor token_ids, Tensor logits, Tensor lane, Tensor block_tables, Tensor choice = {}) = 0;

  // Decides, for each row of drafts.plan, which draft tokens of `batch` are accepted (num_accepted_drafts). The newest
  // token is the draw behind them; its id goes to its slot of the token lane, if it has one. It gets at most
  // room_for_drafts() draft tokens, and none where it is -1. token_ids: [n] i32 becomes -1. sampled_ids: [num_draws]
  // i32.
  virtual void accept_drafts(DraftRows& drafts, Tensor token_ids, Tensor sampled_ids, Tensor lane,
                             const ForwardBatch& batch) = 0;

  // Makes drafts.batch of the draft tokens `last`, which are the `depth`-th of their sequences, depth >= 1. Each is at
  // the slot of the token before it; its own slot of the lane gets its id. Where a sequence is at its end, or `last` is
  // negative, the row becomes padding: position 0 of the null block, a negative choice. last: [n] i32; token_ids: [n]
  // i32 becomes -1.
  virtual void extend_drafts(DraftRows& drafts, Tensor token_ids, Tensor last, Tensor lane, int64_t depth) = 0;

  // Log-probabilities under the unchanged logits. Column 0 is the given token; columns 1.. are the most likely ids,
  // best first, ties to the lowest id. logprobs: [num_rows, 1 + top] f32; ids: [num_rows, 1 + top] i32; ranks:
  // [num_rows] i32, 1 + the number of ids that are likelier than the given one; token_ids: [num_rows] i32; logits:
  // [num_rows, vocab] f32.
  virtual void token_logprobs(Tensor logprobs, Tensor ids, Tensor ranks, Tensor logits, Tensor token_ids) = 0;
};

}  // namespace longcat
