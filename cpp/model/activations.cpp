#include "model/activations.h"

namespace longcat {

Tensor ActivationBuffers::allocate(Device& device, DType dtype, std::initializer_list<int64_t> shape) {
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  if (count == 0) return {};
  return buffers_.emplace_back(device, count * size_of(dtype)).tensor(dtype, shape);
}

ActivationBuffers::ActivationBuffers(Device& device, const ModelConfig& config, const Shard& shard, int64_t max_tokens,
                                     DType dtype, int64_t kv_a_width)
    : max_tokens_(max_tokens) {
  const auto f32 = [&](std::initializer_list<int64_t> shape) { return allocate(device, DType::f32, shape); };
  const auto act = [&](std::initializer_list<int64_t> shape) { return allocate(device, dtype, shape); };
  const auto i32 = [&](std::initializer_list<int64_t> shape) { return allocate(device, DType::i32, shape); };
  const int64_t T = max_tokens, H = shard.heads.size(), hidden = config.hidden_size, topk = config.moe_topk;
  if (config.ngram) {
    full_.ngram_ids = i32({T, config.ngram->num_tables()});
    full_.ngram_rows = act({T, static_cast<int64_t>(shard.tables.size()) * (hidden / config.ngram->num_tables())});
  }
  full_.residual = act({T, hidden});
  full_.x = act({T, hidden});
  full_.h = act({T, hidden});
  full_.cos = f32({T, config.qk_rope_head_dim / 2});
  full_.sin = f32({T, config.qk_rope_head_dim / 2});
  full_.q_a = act({T, config.q_lora_rank});
  full_.q = act({T, H, config.qk_head_dim()});
  full_.kv_a = act({T, kv_a_width > 0 ? kv_a_width : config.latent_dim()});
  full_.q_latent = act({T, H, config.kv_lora_rank});
  full_.latent_out = act({T, H, config.kv_lora_rank});
  full_.attn_out = act({T, H, config.v_head_dim});
  if (config.sparse) {
    const SparseConfig& c = *config.sparse;
    full_.index_q = act({T, c.index_n_heads, c.index_head_dim});
    full_.index_k = act({T, c.index_head_dim});
    full_.index_weights = f32({T, c.index_n_heads});
    full_.selected = i32({T, c.index_topk + kMaxDrafts});
  }
  full_.gate = act({T, shard.ffn.size()});
  full_.up = act({T, shard.ffn.size()});
  full_.moe_in = act({T, hidden});
  full_.router_scores = f32({T, config.num_router_outputs()});
  full_.routing.expert_idx = i32({T, topk});
  full_.routing.expert_weights = f32({T, topk});
  full_.routing.identity_weight = f32({T});
  full_.routing.expert_offsets = i32({shard.experts.size() + 1});
  full_.routing.permuted_tokens = i32({T * topk});
  full_.routing.permuted_rows = i32({T, topk});
  full_.routing.expert_list = i32({1 + 3 * shard.experts.size()});
  full_.expert_gate = act({T * topk, shard.expert_ffn.size()});
  full_.expert_up = act({T * topk, shard.expert_ffn.size()});
  full_.expert_out = act({T * topk, hidden});
  full_.moe_out = act({T, hidden});
}

Activations ActivationBuffers::first(int64_t num_tokens) const {
  LC_CHECK(0 < num_tokens && num_tokens <= max_tokens_, num_tokens, " tokens in a step of at most ", max_tokens_);
  Activations a = full_;
  for (Tensor* rows_are_tokens : {&a.ngram_ids,
                                  &a.ngram_rows,
                                  &a.residual,
                                  &a.x,
                                  &a.h,
                                  &a.cos,
                                  &a.sin,
                                  &a.q_a,
                                  &a.q,
                                  &a.kv_a,
                                  &a.q_latent,
                                  &a.latent_out,
                                  &a.attn_out,
                                  &a.index_q,
                                  &a.index_k,
                                  &a.index_weights,
                                  &a.selected,
                                  &a.gate,
                                  &a.up,
                                  &a.moe_in,
                                  &a.router_scores,
                                  &a.routing.expert_idx,
                                  &a.routing.expert_weights,
                                  &a.routing.identity_weight,
                                  &a.routing.permuted_rows,
                                  &a.moe_out})
    if (!rows_are_tokens->empty()) *rows_are_tokens = rows_are_tokens->first(num_tokens);
  return a;
}

}  // namespace longcat
