// The weights of the model, named by their use in the forward pass, and the function that loads them. Shapes are those
// of one rank: its heads (H), FFN widths, experts, vocabulary rows and tables (model/shard.h).
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
  std::vector<Weight> tables;  // of this rank: [Shard::tables[i].size(), hidden_size / num_tables] each
  Weight projection;  // [hidden_size, tables here * hidden_size / num_tables]: the tables' post_projs side by side
  std::vector<int64_t> moduli;  // [num_tables], of all tables
  std::vector<int64_t> powers;  // [num_tables, emb_neighbor_num - 1]
};

// Appends vocab_size^d mod modulus for d = 1..max_order - 1. Each step is reduced, because plain powers overflow 64
// bits.
void append_powers(std::vector<int64_t>& powers, int64_t vocab_size, int64_t modulus, int64_t max_order);

// Scores positions for sparse attention (SparseConfig). Every rank has all of it.
struct IndexerWeights {
  Weight q_proj;        // wq_b: [index_n_heads * index_head_dim, q_lora_rank], the rope values of a head first
  Weight k_proj;        // wk: [index_head_dim, hidden_size], the rope values first
  Tensor k_norm;        // [index_head_dim] f32
  Weight weights_proj;  // [index_n_heads, hidden_size] f32
};

struct AttentionWeights {
  Weight q_a_proj;   // [q_lora_rank, hidden_size]
  Tensor q_a_norm;   // [q_lora_rank] f32, times sqrt(hidden_size / q_lora_rank)
  Weight q_b_proj;   // [H * (nope + rope), q_lora_rank]
  Weight kv_a_proj;  // [kv_lora_rank + rope, hidden_size]; in fp8, rows of zeros may follow (fp8_row_multiple)
  Tensor kv_a_norm;  // [kv_lora_rank] f32, times sqrt(hidden_size / kv_lora_rank)
  Weight k_up;       // [H * kv_lora_rank, nope]: W_uk of each head, transposed; maps q_nope to a latent query
  Weight v_up;       // [H * v_head_dim, kv_lora_rank]: W_uv of each head; maps a latent result to values
  Weight o_proj;     // [hidden_size, H * v_head_dim]
  std::optional<IndexerWeights> indexer;  // of the owner of a selection
};

struct FfnWeights {
  Weight gate_proj, up_proj;  // [ffn, hidden_size]
  Weight down_proj;           // [hidden_size, ffn]
};

struct MoeWeights {
  Weight classifier;               // [num_router_outputs, hidden_size] f32, or by Ops::prepare_router
  Tensor e_score_correction_bias;  // [num_router_outputs] f32, only added for the selection
  // experts here: [expert_ffn, hidden_size] for gate and up, [hidden_size, expert_ffn] for down
  std::vector<Weight> gate_proj, up_proj, down_proj;

  ExpertWeights experts() const { return {gate_proj, up_proj, down_proj}; }
};

struct LayerWeights {
  Tensor input_norm[2], post_attention_norm[2];  // [hidden_size] f32
  AttentionWeights attention[2];
  FfnWeights ffn[2];  // the second is empty where Shard::adds_ffn() is false
  MoeWeights moe;
};

// The multi-token-prediction layer: a dense layer.
struct MtpWeights {
  Weight word_embedding;          // [vocabulary rows here, hidden_size], or the model's (mtp_shares_embed_tokens)
  Tensor word_norm, hidden_norm;  // [hidden_size] f32: enorm, hnorm
  Weight word_proj, hidden_proj;  // [hidden_size, hidden_size] each: the two halves of eh_proj
  Tensor input_norm, post_attention_norm;
  AttentionWeights attention;
  FfnWeights ffn;
  Tensor final_norm;
  Weight head;  // Ops::draft_head of lm_head, or of its first rows
};

struct ModelWeights {
  Weight word_embedding;  // [vocabulary rows here, hidden_size]
  NgramWeights ngram;     // empty without N-gram tables
  std::vector<LayerWeights> layers;
  Tensor final_norm;  // [hidden_size] f32
  Weight lm_head;     // [vocabulary rows here, hidden_size]
  std::optional<MtpWeights> mtp;

  std::vector<Buffer> storage;                          // planes on the device that are not the mapped file
  std::vector<HostBuffer> host_storage;                 // tables in host memory that the device reads
  std::vector<std::unique_ptr<std::byte[]>> converted;  // converted planes that the backend uses directly
  std::vector<std::string> warnings;                    // one line each

  int64_t num_bytes() const;    // [bytes] of all weights, in the mapped file or outside it
  int64_t table_bytes() const;  // [bytes] of the N-gram tables
  int64_t matrix_bytes() const { return num_bytes() - table_bytes(); }  // [bytes] that steps read whole
};

// The matrices that become fp8 blocks while they are loaded.
enum class Fp8OnLoad {
  none,
  experts,
  all,  // also attention, dense FFNs and head: not the router, the indexer, embeddings, N-gram projections and
        // kv_b_proj
};

// Called during loading with the bytes done and the total bytes.
using LoadProgress = std::function<void(int64_t, int64_t)>;

// Loads the weights of `shard`. First checks every tensor of the checkpoint against the config; one Error lists what is
// missing or misshapen. A range of a matrix's rows is a view like the whole matrix; a range of columns is a copy.
// - On the CPU, bf16, fp8 and packed weights stay views of the mapped file, so `checkpoint` must outlive the result.
// - dtype: f32 keeps f32 weights as they are; bf16 rounds f32 and f16 weights.
// - table_placement: one of Ops::table_placements(). f16 tables, which no kernel reads, are converted and go to the
//   device instead. Tables that stay in the file are copied when they are not aligned there.
// - fp8: of these matrices, those stored as f32, bf16 or f16 become fp8, one at a time. A head that is the embedding,
//   too, stays as it is.
// - with_mtp: the MTP layer is loaded, too, and must be there.
// - draft_vocab: rows of the head for draft tokens, in whole blocks of 128; 0: all.
ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& config, const Shard& shard, DType dtype,
                          Ops& ops, Placement table_placement, Fp8OnLoad fp8 = Fp8OnLoad::none, bool with_mtp = false,
                          const LoadProgress& progress = {}, int64_t draft_vocab = 0);

}  // namespace longcat
