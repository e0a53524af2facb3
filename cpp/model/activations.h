// The buffers that a forward pass writes, with their shapes. T = max_tokens of a step. Heads (H), FFN widths, experts
// and tables are those of this rank. The dtype is Ops::activation_dtype() where none is given.
#pragma once

#include <vector>

#include "base/buffer.h"
#include "io/model_config.h"
#include "model/shard.h"
#include "ops/ops.h"

namespace longcat {

// More than the draft tokens of a sequence in a step, which lie in one block of the cache.
constexpr int64_t kMaxDrafts = kBlockSize;

struct Activations {
  // embedding
  Tensor ngram_ids;   // [T, num_tables] i32, of all tables
  Tensor ngram_rows;  // [T, tables here * table_dim], for the tables of which this rank has at least some rows
  // residual stream
  Tensor residual;  // [T, hidden_size]
  Tensor x;         // [T, hidden_size] output of a sub-layer, added to the residual by the next norm
  Tensor h;         // [T, hidden_size] normalised input of a sub-layer; after forward(): the final hidden states
  // attention
  Tensor cos, sin;    // [T, rope / 2] f32
  Tensor q_a;         // [T, q_lora_rank]
  Tensor q;           // [T, H, nope + rope]
  Tensor kv_a;        // [T, kv_a_width]
  Tensor q_latent;    // [T, H, kv_lora_rank]
  Tensor latent_out;  // [T, H, kv_lora_rank]
  Tensor attn_out;    // [T, H, v_head_dim]
  // indexer of sparse attention; empty without
  Tensor index_q;        // [T, index_n_heads, index_head_dim]
  Tensor index_k;        // [T, index_head_dim]
  Tensor index_weights;  // [T, index_n_heads] f32
  Tensor selected;       // [T, index_topk + kMaxDrafts] i32, of which the first index_topk are used but by drafts
  // dense FFN
  Tensor gate, up;  // [T, ffn]
  // shortcut MoE: buffers of its own, because it may run concurrently with the dense branch
  Tensor moe_in;                  // [T, hidden_size] kept until the end of the layer
  Tensor router_scores;           // [T, num_router_outputs] f32
  Routing routing;                // see ops.h
  Tensor expert_gate, expert_up;  // [T * topk, expert_ffn]
  Tensor expert_out;              // [T * topk, hidden_size]
  Tensor moe_out;                 // [T, hidden_size] routed experts only
};

// Owns the buffers of the largest step. A smaller step uses the first rows of each.
class ActivationBuffers {
 public:
  // kv_a_width: number of rows of kv_a_proj; 0 means kv_lora_rank + qk_rope_head_dim.
  ActivationBuffers(Device& device, const ModelConfig& config, const Shard& shard, int64_t max_tokens, DType dtype,
                    int64_t kv_a_width = 0);

  Activations first(int64_t num_tokens) const;
  Activations all() const { return full_; }

 private:
  Tensor allocate(Device& device, DType dtype, std::initializer_list<int64_t> shape);

  int64_t max_tokens_;
  std::vector<Buffer> buffers_;
  Activations full_;
};

}  // namespace longcat
