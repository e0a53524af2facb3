// config.json of a LongCat-Flash checkpoint: the fields this runtime needs, checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace longcat {

// Hashed N-gram embedding: orders 2..N with N = `emb_neighbor_num`, and K = `emb_split_num` tables per order.
struct NgramConfig {
  int64_t table_rows = 0;        // m = int(ngram_vocab_size_ratio * vocab_size); table t holds m + 2t + 1 rows
  int64_t emb_neighbor_num = 0;  // N: the longest N-gram, the current token included
  int64_t emb_split_num = 0;     // K: tables per order

  int64_t num_tables() const { return emb_split_num * (emb_neighbor_num - 1); }
  int64_t rows_of(int64_t table) const { return table_rows + 2 * table + 1; }
};

// `rope_scaling` of type yarn (YaRN paper).
struct YarnConfig {
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32, beta_slow = 1;  // [rotations over the original context]
  std::optional<double> mscale, mscale_all_dim;
  std::optional<double> attention_factor;  // factor on cos and sin; absent: derived from factor and mscale
  bool truncate = true;                    // round the ramp's ends outwards to whole dimensions

  bool operator==(const YarnConfig&) const = default;
};

// LongCat Sparse Attention (LSA) of LongCat-Flash-Lite-Sparse. An indexer scores the visible positions; attention reads
// the index_topk best. The first index_init_tokens positions and the last index_local_tokens are always among them.
struct SparseConfig {
  int64_t index_n_heads = 0, index_head_dim = 0;
  int64_t index_topk = 0;  // a token with at most this many visible positions attends to all of them
  int64_t index_init_tokens = 0, index_local_tokens = 0;
  std::vector<bool> is_owner;  // of each sub-layer: has an indexer. Another one uses the selection before it.
  bool dsa_mtp_cli = true;     // draft tokens share the selection of the first one

  // Number of sub-layers before `sub_layer` that have an indexer.
  int64_t owners_before(int64_t sub_layer) const {
    return std::count(is_owner.begin(), is_owner.begin() + sub_layer, true);
  }
};

struct ModelConfig {
  std::string architecture;  // LongcatFlashNgramForCausalLM, LongcatFlashForCausalLM or LongcatCausalLM

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;  // each holds 2 attentions, 2 dense FFNs and 1 MoE
  int64_t num_attention_heads = 0;
  int64_t q_lora_rank = 0, kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  int64_t ffn_hidden_size = 0;
  int64_t expert_ffn_hidden_size = 0;
  int64_t n_routed_experts = 0, zero_expert_num = 0, moe_topk = 0;
  double routed_scaling_factor = 1;
  bool mla_scale_q_lora = true, mla_scale_kv_lora = true;
  bool tie_word_embeddings = false;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000;
  std::optional<YarnConfig> yarn;    // rope_scaling, null when absent
  std::optional<NgramConfig> ngram;  // null: plain word embedding (LongCat-Flash-Chat)
  // Switches for what the public implementations do not agree on (docs/models.md).
  bool oe_divides_word = true;           // the word's vector is divided by 1 + number of tables, as their sum is
  bool mtp_shares_embed_tokens = false;  // the MTP layer reads the model's word embedding, not its own
  std::optional<double> mla_norm_eps;    // of the q_a and kv_a norms; null: rms_norm_eps for Sparse, 1e-6 for Lite
  std::optional<SparseConfig> sparse;    // null: dense attention
  int64_t max_position_embeddings = 0;
  int64_t bos_token_id = 1, eos_token_id = 2;  // only this id ends an N-gram segment
  DType torch_dtype = DType::bf16;
  bool fp8_blocks = false;  // quantization_config: e4m3 weights with weight_scale_inv per 128 x 128 block

  std::vector<std::string> warnings;  // unusual fields, and how they were read

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
  int64_t latent_dim() const { return kv_lora_rank + qk_rope_head_dim; }  // one cached row
  int64_t num_router_outputs() const { return n_routed_experts + zero_expert_num; }
  int64_t num_sub_layers() const { return 2 * num_layers; }
};

// `text` is the JSON; `where` names it in messages. Throws Error with one line: field, found, expected, remedy.
ModelConfig parse_model_config(std::string_view text, const std::string& where);

// Reads `folder`/config.json (at most 1 MiB).
ModelConfig load_model_config(const std::filesystem::path& folder);

}  // namespace longcat
