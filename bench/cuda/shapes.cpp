#include "shapes.h"

namespace longcat {

ModelConfig lite_config() {
  ModelConfig c;
  c.architecture = "LongcatFlashNgramForCausalLM";
  c.vocab_size = 131072;
  c.hidden_size = 3072;
  c.num_layers = 14;
  c.num_attention_heads = 32;
  c.q_lora_rank = 1536;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.ffn_hidden_size = 6144;
  c.expert_ffn_hidden_size = 1024;
  c.n_routed_experts = 256;
  c.zero_expert_num = 128;
  c.moe_topk = 12;
  c.routed_scaling_factor = 6;
  c.rope_theta = 5e6;
  c.yarn.emplace();
  c.yarn->factor = 10;
  c.yarn->original_max_position_embeddings = 32768;
  c.yarn->mscale = c.yarn->mscale_all_dim = 1;
  c.max_position_embeddings = 327680;
  c.ngram = NgramConfig{.table_rows = 78 * c.vocab_size, .emb_neighbor_num = 4, .emb_split_num = 4};
  return c;
}

ModelConfig tiny_config() {
  ModelConfig c = lite_config();
  c.vocab_size = 256;
  c.hidden_size = 96;
  c.num_layers = 2;
  c.num_attention_heads = 2;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 8;
  c.ffn_hidden_size = 64;
  c.expert_ffn_hidden_size = 32;
  c.n_routed_experts = 6;
  c.zero_expert_num = 3;
  c.moe_topk = 3;
  c.ngram->table_rows = 500;
  return c;
}

ModelConfig parity_config() {
  ModelConfig c = lite_config();
  c.vocab_size = 1024;
  c.hidden_size = 768;
  c.num_layers = 2;
  c.num_attention_heads = 4;
  c.q_lora_rank = 256;
  c.ffn_hidden_size = 512;
  c.expert_ffn_hidden_size = 256;
  c.n_routed_experts = 8;
  c.zero_expert_num = 4;
  c.moe_topk = 4;
  c.ngram->table_rows = 500;
  return c;
}

}  // namespace longcat
