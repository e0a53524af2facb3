// The weights of the model by their place in the forward pass, and how they come out of a checkpoint. Shapes are those
// of one rank: its heads H, FFN widths, experts, words and tables (model/shard.h).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/model_config.h"
#include "io/safetensors.h"
#include "model/shard.h"
#include "ops/ops.h"

namespace longcat {

struct NgramWeights {
  std::vector<Weight> tables;   // of this rank: [Shard::tables[i].size(), hidden_size / num_tables] each
  Weight projection;            // [hidden_size, tables * hidden_size / num_tables]: their post_projs side by side
  std::vector<int64_t> moduli;  // [num_tables], of all
  std::vector<int64_t> powers;  // [num_tables, emb_neighbor_num - 1]
};

// Appends vocab_size^d mod modulus for d = 1..max_order - 1, reduced step by step: the plain powers overflow 64 bits.
void append_powers(std::vector<int64_t>& powers, int64_t vocab_size, int64_t modulus, int64_t max_order);

struct AttentionWeights {
  Weight q_a_proj;   // [q_lora_rank, hidden_size]
  Tensor q_a_norm;   // [q_lora_rank] f32, times sqrt(hidden_size / q_lora_rank)
  Weight q_b_proj;   // [H * (nope + rope), q_lora_rank]
  Weight kv_a_proj;  // [kv_lora_rank + rope, hidden_size]; in fp8 perhaps rows of zeros behind (fp8_row_multiple)
  Tensor kv_a_norm;  // [kv_lora_rank] f32, times sqrt(hidden_size / kv_lora_rank)
  Weight k_up;       // [H * kv_lora_rank, nope]: W_uk of each head, transposed, so that q_nope becomes a latent query
  Weight v_up;       // [H * v_head_dim, kv_lora_rank]: W_uv of each head
  Weight o_proj;     // [hidden_size, H * v_head_dim]
};

struct FfnWeights {
  Weight gate_proj, up_proj;  // [ffn, hidden_size]
  Weight down_proj;           // [hidden_size, ffn]
};

struct MoeWeights {
  Weight classifier;                                  // [num_router_outputs, hidden_size] f32
  Tensor e_score_correction_bias;                     // [num_router_outputs] f32, for the selection only
  std::vector<Weight> gate_proj, up_proj, down_proj;  // [experts]

  ExpertWeights experts() const { return {gate_proj, up_proj, down_proj}; }
};

struct LayerWeights {
  Tensor input_norm[2], post_attention_norm[2];  // [hidden_size] f32
  AttentionWeights attention[2];
  FfnWeights ffn[2];  // the second is empty where Shard::adds_ffn() is false
  MoeWeights moe;
};

// The multi-token-prediction layer: a dense one, with a word embedding of its own.
struct MtpWeights {
  Weight word_embedding;          // [words, hidden_size]
  Tensor word_norm, hidden_norm;  // [hidden_size] f32: enorm, hnorm
  Weight word_proj, hidden_proj;  // [hidden_size, hidden_size] each: the two halves of eh_proj
  Tensor input_norm, post_attention_norm;
  AttentionWeights attention;
  FfnWeights ffn;
  Tensor final_norm;
};

struct ModelWeights {
  Weight word_embedding;  // [words, hidden_size]
  NgramWeights ngram;     // empty without N-gram tables
  std::vector<LayerWeights> layers;
  Tensor final_norm;  // [hidden_size] f32
  Weight lm_head;     // [words, hidden_size]
  std::optional<MtpWeights> mtp;

  std::vector<Buffer> storage;                          // planes on the device that are not the mapped file itself
  std::vector<HostBuffer> host_storage;                 // tables in host memory that the device reads
  std::vector<std::unique_ptr<std::byte[]>> converted;  // planes that were converted and are used where they lie
  std::vector<std::string> warnings;                    // one line each

  int64_t num_bytes() const;    // of all of the above: in the mapped file, or beside it
  int64_t table_bytes() const;  // of the N-gram tables among them
};

// Called while loading with the bytes done and the bytes in all.
using LoadProgress = std::function<void(int64_t, int64_t)>;

// Checks every tensor of the checkpoint against the config first (one Error that lists what is missing or misshapen),
// then builds the weights. On the CPU bf16, fp8 and packed weights stay views of the mapped file: `checkpoint` must
// outlive the result. dtype: f32 keeps f32 weights as they are; bf16 rounds f32 and f16 weights. Tables go to
// table_placement (one of Ops::table_placements()) but for those that are f16, which no kernel reads: they are
// converted in memory, and go to the device; those that are to stay in the file are copied when they are not aligned
// there. quantize_experts: those that are not fp8 become it, one at a time. Of all that, what `shard` holds: rows of a
// matrix are a view like the whole, columns a copy. with_mtp: with the MTP layer, which must be there.
ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const Shard& shard, DType dtype,
                          Ops& ops, Placement table_placement, bool quantize_experts = false, bool with_mtp = false,
                          const LoadProgress& progress = {});

}  // namespace longcat
