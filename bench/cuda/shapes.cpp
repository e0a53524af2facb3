#include "shapes.h"

namespace longcat {

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
  c.n_routed_experts = 32;
  c.zero_expert_num = 384 - c.n_routed_experts;  // as many outputs and picks as the whole model has
  c.ngram->table_rows = 500;
  return c;
}

}  // namespace longcat
