#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "base/mapped_file.h"

namespace longcat {

namespace {

// The reference of Lite builds the q_a and kv_a norms with the default eps of its RMSNorm, not with rms_norm_eps. The
// published engine of Sparse uses rms_norm_eps. The difference moves logits by up to 3e-4.
constexpr double kInnerNormEps = 1e-6;

constexpr float kIndexNormEps = 1e-6f;  // of the index keys

// The most rows of any kv_a_proj. They differ when a checkpoint stores its matrices in several formats.
int64_t kv_a_width(const ModelWeights& weights) {
  int64_t width = weights.mtp ? weights.mtp->attention.kv_a_proj.out_features : 0;
  for (const LayerWeights& layer : weights.layers)
    for (const AttentionWeights& attention : layer.attention) width = std::max(width, attention.kv_a_proj.out_features);
  return width;
}

}  // namespace

Model::Model(Ops& ops, const ModelConfig& config, Ranks ranks, ModelWeights weights, int64_t max_tokens,
             int64_t max_logits)
    : ops_(ops),
      config_(config),
      ranks_(std::move(ranks)),
      weights_(std::move(weights)),
      rope_(make_rope_scaling(config)),
      softmax_scale_(static_cast<float>(rope_.softmax_factor / std::sqrt(static_cast<double>(config.qk_head_dim())))),
      inner_norm_eps_(
          static_cast<float>(config.mla_norm_eps.value_or(config.sparse ? config.rms_norm_eps : kInnerNormEps))),
      inv_freq_(ops.device(), config.qk_rope_head_dim / 2 * size_of(DType::f32)),
      buffers_(ops.device(), config, ranks_.shard, max_tokens, ops.activation_dtype(), kv_a_width(weights_)) {
  const std::vector<float> inv_freq(rope_.inv_freq.begin(), rope_.inv_freq.end());
  ops.device().copy_from_host(inv_freq_.data(), inv_freq.data(), inv_freq_.bytes());
  if (const int64_t world = shard().world(); world > 1) {
    const int64_t rows = own_logits_capacity(max_logits) * world;
    sent_logits_ = Buffer(ops.device(), rows * shard().vocab.size() * 4);
    received_logits_ = Buffer(ops.device(), rows * shard().vocab.size() * 4);
  }
}

void Model::fit_into(int64_t available_bytes) {
  const std::vector<Weight>& experts = weights_.layers[0].moe.gate_proj;
  const bool are_on_disk = !experts.empty() && experts[0].placement == Placement::disk;
  reads_experts_from_disk_ = are_on_disk && weights_.matrix_bytes() > available_bytes;
  if (!reads_experts_from_disk_) return;
  for (const LayerWeights& layer : weights_.layers)
    for (const auto* matrices : {&layer.moe.gate_proj, &layer.moe.up_proj, &layer.moe.down_proj})
      for (const Weight& weight : *matrices)
        if (weight.placement == Placement::disk) expect_random_reads(weight.data, weight.num_bytes());
}

Tensor Model::forward(const ForwardBatch& batch, KvCache& cache) {
  a_ = buffers_.first(batch.num_tokens());
  selection_rows_ = {};
  num_drafts_ = 0;
  ops_.begin_step(batch);
  embed(batch, cache);
  prepare_attention(batch, cache);
  ops_.add_rms_norm(a_.h, a_.residual, {}, weights_.layers[0].input_norm[0], static_cast<float>(config_.rms_norm_eps));
  for (int64_t l = 0; l < config_.num_layers; ++l) decoder_layer(l, batch, cache);
  return a_.h;
}

// u = eh_proj [enorm(word) | hnorm(hidden)], then a layer without MoE. Multi-token prediction, DeepSeek-V3 technical
// report, section 2.2, with two differences: the word's half comes first, and the next depth reads the normalised
// output.
Tensor Model::forward_mtp(const ForwardBatch& batch, KvCache& cache, Tensor hidden, Tensor rows) {
  const MtpWeights& w = *weights_.mtp;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  embed_mtp(batch, cache, hidden, rows);
  attention(w.attention, cache.latents(config_.num_sub_layers()), mtp_index_keys(cache), batch);
  ranks_.tp->all_reduce(a_.x);
  ops_.add_rms_norm(a_.h, a_.residual, a_.x, w.post_attention_norm, eps);
  ffn(w.ffn, a_.h);
  ranks_.tp->all_reduce(a_.x);
  ops_.add_rms_norm(a_.h, a_.residual, a_.x, w.final_norm, eps);
  return a_.h;
}

void Model::store_mtp(const ForwardBatch& batch, KvCache& cache, Tensor hidden) {
  const AttentionWeights& w = weights_.mtp->attention;
  embed_mtp(batch, cache, hidden, {});
  ops_.linear_pair(a_.q_a, a_.kv_a.slice(1, 0, w.kv_a_proj.out_features), a_.h, w.q_a_proj, w.kv_a_proj);
  ops_.mla_norm_store(a_.q_a, w.q_a_norm, cache.latents(config_.num_sub_layers()),
                      a_.kv_a.slice(1, 0, config_.latent_dim()), w.kv_a_norm, inner_norm_eps_, a_.cos, a_.sin, batch);
  if (w.indexer) store_index_keys(*w.indexer, mtp_index_keys(cache), batch);
}

// residual = eh_proj [enorm(word) | hnorm(hidden)], and h is normalised for the layer.
void Model::embed_mtp(const ForwardBatch& batch, const KvCache& cache, Tensor hidden, Tensor rows) {
  const MtpWeights& w = *weights_.mtp;
  const float eps = static_cast<float>(config_.rms_norm_eps);
  a_ = buffers_.first(batch.num_tokens());
  selection_rows_ = config_.sparse && config_.sparse->dsa_mtp_cli ? rows : Tensor();
  num_drafts_ = selection_rows_.empty() ? 0 : num_drafts_ + 1;
  LC_CHECK(num_drafts_ < kMaxDrafts);
  ops_.begin_step(batch);
  if (rows.empty()) {
    ops_.rms_norm(a_.moe_in, hidden, w.hidden_norm, eps);
  } else {
    ops_.gather_rows(a_.moe_in, hidden, rows);
    ops_.rms_norm(a_.moe_in, a_.moe_in, w.hidden_norm, eps);
  }
  ops_.embed(a_.x, batch.token_ids, w.word_embedding, shard().vocab.begin, {}, {}, 1);
  ranks_.world->all_reduce(a_.x);
  ops_.rms_norm(a_.x, a_.x, w.word_norm, eps);
  ops_.linear(a_.residual, a_.x, w.word_proj);
  ops_.linear(a_.x, a_.moe_in, w.hidden_proj);
  prepare_attention(batch, cache);
  ops_.add_rms_norm(a_.h, a_.residual, a_.x, w.input_norm, eps);
}

void Model::abort_ranks(const std::string& reason) noexcept {
  ranks_.world->abort(reason);
  ranks_.tp->abort(reason);
}

std::string Model::way_of_sums() const {
  const std::string world = ranks_.world->way_of_sums(), tp = ranks_.tp->way_of_sums();
  return tp.empty() || tp == world ? world : str_cat(world, "; within tensor-parallel groups ", tp);
}

void Model::launch(Recording& recorded) {
  ranks_.world->launch_recorded([&] { ranks_.tp->launch_recorded([&] { recorded.launch(); }); });
}

Range Model::own_logits(int64_t num_rows) const {
  const int64_t rows_of_a_rank = own_logits_capacity(num_rows);
  const int64_t begin = std::min(shard().rank * rows_of_a_rank, num_rows);
  return {begin, std::min(begin + rows_of_a_rank, num_rows)};
}

void Model::logits(Tensor out, Tensor hidden, Tensor rows, const Weight& head) {
  const int64_t num_rows = rows.size(0), world = shard().world(), vocab_rows = shard().vocab.size();
  const Tensor picked = buffers_.first(num_rows).moe_in;  // free between steps
  ops_.gather_rows(picked, hidden, rows);
  if (world == 1) return ops_.linear(out, picked, head);

  const int64_t rows_of_a_rank = own_logits_capacity(num_rows);
  const Tensor sent = sent_logits_.tensor(DType::f32, {rows_of_a_rank * world, vocab_rows});
  const Tensor received = received_logits_.tensor(DType::f32, {world, rows_of_a_rank, vocab_rows});
  ops_.linear(sent.first(num_rows), picked, head);
  ranks_.world->all_to_all(received, sent);
  if (own_logits(num_rows).size() > 0) ops_.merge_vocab_parts(out, received);
}

// residual = mean of the word embedding and the projected rows of all N-gram tables. Each rank adds the rows it has;
// the all-reduce completes the sum. Where the word's vector is not divided, the rest of it is added.
void Model::embed(const ForwardBatch& batch, KvCache& cache) {
  const NgramWeights& w = weights_.ngram;
  NgramTables ngram{.tables = w.tables,
                    .first_table = shard().first_table,
                    .first_row = shard().tables.empty() ? 0 : shard().tables[0].begin,
                    .moduli = w.moduli,
                    .powers = w.powers,
                    .eos_token_id = static_cast<int32_t>(config_.eos_token_id)};
  float scale = 1;
  if (config_.ngram) {
    ngram.max_order = config_.ngram->emb_neighbor_num;
    ngram.splits = config_.ngram->emb_split_num;
    scale = 1.0f / static_cast<float>(1 + config_.ngram->num_tables());
  }
  ops_.ngram_lookup(a_.ngram_ids, a_.ngram_rows, cache.token_lane(), batch, ngram);
  ops_.embed(a_.residual, batch.token_ids, weights_.word_embedding, shard().vocab.begin, a_.ngram_rows, w.projection,
             scale);
  if (!config_.oe_divides_word) {
    ops_.embed(a_.x, batch.token_ids, weights_.word_embedding, shard().vocab.begin, {}, {}, 1 - scale);
    ops_.add(a_.residual, a_.x);
  }
  ranks_.world->all_reduce(a_.residual);
}

// What all attentions of a step share.
void Model::prepare_attention(const ForwardBatch& batch, const KvCache& cache) {
  ops_.rope_angles(a_.cos, a_.sin, batch.positions, inv_freq_.tensor(DType::f32, {config_.qk_rope_head_dim / 2}),
                   static_cast<float>(rope_.cos_sin_factor));
  ops_.plan_decode(batch,
                   {.num_heads = shard().heads.size(),
                    .kv_lora_rank = config_.kv_lora_rank,
                    .qk_nope_head_dim = config_.qk_nope_head_dim,
                    .qk_rope_head_dim = config_.qk_rope_head_dim,
                    .v_head_dim = config_.v_head_dim},
                   cache.dtype(), may_select(batch) ? selected().size(1) : 0);
}

// Two attentions and two dense FFNs in a row. The MoE reads the first FFN's input, and its output is added at the end
// of the layer. It may therefore run concurrently with everything between (shortcut-connected MoE, LongCat-Flash
// technical report). Each rank computes a partial sum of a sub-layer's output. The last all-reduce serves the second
// FFN and the MoE at once. The identity experts need no all-reduce: every rank has their input and adds it once, after
// the sum.
// On entry, h is normalised for this layer; on return, for the next layer or the head.
void Model::decoder_layer(int64_t layer_idx, const ForwardBatch& batch, KvCache& cache) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer_idx)];
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const bool is_last = layer_idx + 1 == config_.num_layers;
  const Tensor next_norm =
      is_last ? weights_.final_norm : weights_.layers[static_cast<size_t>(layer_idx) + 1].input_norm[0];

  const auto index_keys = [&](int64_t sub_layer) {
    return w.attention[sub_layer % 2].indexer ? cache.index_keys(config_.sparse->owners_before(sub_layer)) : Tensor();
  };
  attention(w.attention[0], cache.latents(2 * layer_idx), index_keys(2 * layer_idx), batch);
  ranks_.tp->all_reduce(a_.x);
  ops_.add_rms_norm(a_.moe_in, a_.residual, a_.x, w.post_attention_norm[0], eps);

  ops_.device().begin_branch();
  route(w.moe, batch.num_real_tokens);
  if (reads_experts_from_disk_) {
    ops_.read_experts_ahead(a_.routing, w.moe.experts());
  } else {
    experts(w.moe);
  }
  ops_.device().end_branch();

  ffn(w.ffn[0], a_.moe_in);
  ranks_.tp->all_reduce(a_.x);
  ops_.add_rms_norm(a_.h, a_.residual, a_.x, w.input_norm[1], eps);
  attention(w.attention[1], cache.latents(2 * layer_idx + 1), index_keys(2 * layer_idx + 1), batch);
  ranks_.tp->all_reduce(a_.x);
  ops_.add_rms_norm(a_.h, a_.residual, a_.x, w.post_attention_norm[1], eps);
  if (shard().adds_ffn()) ffn(w.ffn[1], a_.h);
  if (reads_experts_from_disk_) experts(w.moe);
  const Tensor routed = join_experts();
  ops_.add_shortcut_rms_norm(a_.h, a_.residual, a_.x, routed, a_.moe_in, a_.routing.identity_weight, next_norm, eps);
}

// The end of the MoE branch, behind the second FFN of the layer, x = ffn(h). With several ranks one all-reduce sums
// both outputs; a rank outside the first tensor-parallel group has no part of the FFN. Returns the routed experts'
// output that is not in x yet: all of it on one rank, else nothing.
Tensor Model::join_experts() {
  ops_.device().join_branch();
  if (shard().world() == 1) return a_.moe_out;
  if (shard().adds_ffn()) {
    ops_.add(a_.x, a_.moe_out);
  } else {
    ops_.device().copy(a_.x.raw(), a_.moe_out.raw(), a_.x.num_bytes());
  }
  ranks_.world->all_reduce(a_.x);
  return {};
}

// x = MLA(h). Prompt tokens attend to keys and values materialised from the latents. Generated tokens attend absorbed:
// queries go into the latent space and attend to the cache as one head of kv_lora_rank + rope values. Each head's W_uv
// takes the result out. With sparse attention, both kinds attend to the selected positions.
void Model::attention(const AttentionWeights& w, Tensor latents, Tensor index_keys, const ForwardBatch& batch) {
  const int64_t nope = config_.qk_nope_head_dim, head_dim = config_.qk_head_dim(), num_heads = shard().heads.size();
  const int64_t num_tokens = batch.num_tokens(), attn_width = num_heads * config_.v_head_dim;
  const int64_t num_decodes = batch.num_decode_tokens;
  const Tensor q_rope = a_.q.slice(2, nope, head_dim);

  ops_.linear_pair(a_.q_a, a_.kv_a.slice(1, 0, w.kv_a_proj.out_features), a_.h, w.q_a_proj, w.kv_a_proj);
  const Tensor kv_a = a_.kv_a.slice(1, 0, config_.latent_dim());
  ops_.mla_norm_store(a_.q_a, w.q_a_norm, latents, kv_a, w.kv_a_norm, inner_norm_eps_, a_.cos, a_.sin, batch);
  if (w.indexer) select_positions(*w.indexer, index_keys, batch);
  ops_.linear(a_.q.reshape({num_tokens, num_heads * head_dim}), a_.q_a, w.q_b_proj);
  ops_.rope(q_rope, a_.cos, a_.sin);

  if (num_decodes > 0) {
    const Tensor q_latent = a_.q_latent.first(num_decodes), latent_out = a_.latent_out.first(num_decodes);
    ops_.linear_per_head(q_latent, a_.q.first(num_decodes).slice(2, 0, nope), w.k_up);
    if (may_select(batch)) {
      ops_.mla_decode_selected(latent_out, q_latent, q_rope.first(num_decodes), latents, selected().first(num_decodes),
                               batch, softmax_scale_);
    } else {
      ops_.mla_decode(latent_out, q_latent, q_rope.first(num_decodes), latents, batch, softmax_scale_);
    }
    ops_.linear_per_head(a_.attn_out.first(num_decodes), latent_out, w.v_up);
  }
  if (num_decodes < num_tokens) {
    const auto prompt_rows = [&](Tensor x) { return x.slice(0, num_decodes, num_tokens); };
    if (may_select(batch)) {
      ops_.mla_prefill_selected(prompt_rows(a_.attn_out), prompt_rows(a_.q), latents, w.k_up, w.v_up,
                                prompt_rows(selected()), prompt_rows(a_.q_latent), prompt_rows(a_.latent_out), batch,
                                softmax_scale_);
    } else {
      ops_.mla_prefill(prompt_rows(a_.attn_out), prompt_rows(a_.q), latents, w.k_up, w.v_up, batch, softmax_scale_);
    }
  }
  ops_.linear(a_.x, a_.attn_out.reshape({num_tokens, attn_width}), w.o_proj);
}

// Whether a token of the batch may have more than index_topk visible positions. Blocks are counted, so a backend that
// launches by the number of blocks decides the same for all steps that it records together.
bool Model::may_select(const ForwardBatch& batch) const {
  return config_.sparse && batch.block_tables.size(1) * kBlockSize > config_.sparse->index_topk;
}

void Model::store_index_keys(const IndexerWeights& w, Tensor index_keys, const ForwardBatch& batch) {
  ops_.linear(a_.index_k, a_.h, w.k_proj);
  ops_.index_store(index_keys, a_.index_k, w.k_norm, kIndexNormEps, a_.cos, a_.sin, batch);
}

Tensor Model::mtp_index_keys(const KvCache& cache) const {
  return config_.sparse ? cache.index_keys(KvCache::num_index_layers(config_) - 1) : Tensor();
}

// The indexer (LSA) stores an index key of every token and selects positions. This sub-layer attends to them, and so do
// those without an indexer behind it. The indexer reads the normalised input h, and the query latent before q_b_proj.
// Draft tokens behind the first one share its selection where dsa_mtp_cli says so.
void Model::select_positions(const IndexerWeights& w, Tensor index_keys, const ForwardBatch& batch) {
  const SparseConfig& c = *config_.sparse;
  const int64_t num_tokens = batch.num_tokens();
  store_index_keys(w, index_keys, batch);
  if (!may_select(batch)) return;
  if (!selection_rows_.empty()) {
    const Tensor before = buffers_.all().selected.slice(1, 0, c.index_topk + num_drafts_);
    return ops_.extend_selection(before, selection_rows_, batch.positions);
  }
  ops_.linear(a_.index_q.reshape({num_tokens, c.index_n_heads * c.index_head_dim}), a_.q_a, w.q_proj);
  ops_.rope(a_.index_q.slice(2, 0, config_.qk_rope_head_dim), a_.cos, a_.sin);
  ops_.linear(a_.index_weights, a_.h, w.weights_proj);
  // The query latent carries sqrt(hidden / q_lora_rank), which the scores do not have.
  const double rank_scale =
      config_.mla_scale_q_lora
          ? std::sqrt(static_cast<double>(config_.q_lora_rank) / static_cast<double>(config_.hidden_size))
          : 1;
  const double scale = rank_scale / std::sqrt(static_cast<double>(c.index_n_heads * c.index_head_dim));
  ops_.select_positions(selected(), a_.index_q, a_.index_weights, index_keys, batch,
                        {c.index_topk, c.index_init_tokens, c.index_local_tokens}, static_cast<float>(scale));
}

// x = down(silu(gate(h)) * up(h)).
void Model::ffn(const FfnWeights& w, Tensor h) {
  ops_.linear_silu_mul(a_.gate, a_.up, h, w.gate_proj, w.up_proj);
  ops_.linear(a_.x, a_.gate, w.down_proj);
}

// The experts of moe_in.
void Model::route(const MoeWeights& w, Tensor num_real_tokens) {
  ops_.moe_route(a_.routing, a_.router_scores, a_.moe_in, w.classifier, w.e_score_correction_bias, num_real_tokens,
                 config_.n_routed_experts, shard().experts.begin, static_cast<float>(config_.routed_scaling_factor));
}

// moe_out = weighted sum of the routed experts here, for moe_in. The identity experts' contribution is moe_in times
// routing.identity_weight; the end of the layer adds it.
void Model::experts(const MoeWeights& w) {
  ops_.moe_experts(a_.moe_out, a_.expert_gate, a_.expert_up, a_.expert_out, a_.moe_in, a_.routing, w.experts());
}

}  // namespace longcat
