#include "random_weights.h"

#include <algorithm>

#include "base/available_memory.h"

namespace longcat {

namespace {

class RandomWeights {
 public:
  RandomWeights(Bench& bench, bool fp8) : b_(bench), c_(bench.config()), fp8_(fp8) {}

  ModelWeights make() {
    weights_.word_embedding = matrix(c_.vocab_size, c_.hidden_size);
    weights_.ngram.projection = matrix(c_.hidden_size, c_.hidden_size);
    for (int64_t l = 0; l < c_.num_layers; ++l) weights_.layers.push_back(layer());
    weights_.final_norm = vector(c_.hidden_size, 1);
    weights_.lm_head = product(c_.vocab_size, c_.hidden_size);
    return std::move(weights_);
  }

 private:
  Weight matrix(int64_t out_features, int64_t in_features) {
    return b_.matrix(weights_.storage.emplace_back(), out_features, in_features);
  }

  // As Fp8OnLoad::all has it.
  Weight product(int64_t out_features, int64_t in_features) {
    if (!fp8_) return matrix(out_features, in_features);
    Buffer plane;
    Weight logical = b_.matrix(plane, out_features, in_features);
    std::vector<char> host(static_cast<size_t>(plane.bytes()));
    b_.device().copy_to_host(host.data(), plane.data(), plane.bytes());
    logical.data = host.data();
    return b_.ops().quantize_fp8(logical, weights_.storage.emplace_back());
  }

  Tensor vector(int64_t count, float value) {
    const std::vector<float> values(static_cast<size_t>(count), value);
    const Tensor out = weights_.storage.emplace_back(b_.device(), count * 4).tensor(DType::f32, {count});
    b_.device().copy_from_host(out.raw(), values.data(), count * 4);
    return out;
  }

  LayerWeights layer() {
    const int64_t heads = c_.num_attention_heads, hidden = c_.hidden_size;
    const int64_t multiple = fp8_ ? b_.ops().fp8_row_multiple() : 1;
    const int64_t kv_a_rows = (c_.latent_dim() + multiple - 1) / multiple * multiple;
    LayerWeights w;
    for (int i = 0; i < 2; ++i) {
      w.input_norm[i] = vector(hidden, 1);
      w.post_attention_norm[i] = vector(hidden, 1);
      w.attention[i] = {.q_a_proj = product(c_.q_lora_rank, hidden),
                        .q_a_norm = vector(c_.q_lora_rank, 1),
                        .q_b_proj = product(heads * c_.qk_head_dim(), c_.q_lora_rank),
                        .kv_a_proj = product(kv_a_rows, hidden),
                        .kv_a_norm = vector(c_.kv_lora_rank, 1),
                        .k_up = matrix(heads * c_.kv_lora_rank, c_.qk_nope_head_dim),
                        .v_up = matrix(heads * c_.v_head_dim, c_.kv_lora_rank),
                        .o_proj = product(hidden, heads * c_.v_head_dim)};
      w.ffn[i] = {.gate_proj = product(c_.ffn_hidden_size, hidden),
                  .up_proj = product(c_.ffn_hidden_size, hidden),
                  .down_proj = product(hidden, c_.ffn_hidden_size)};
    }
    w.moe.classifier = b_.router(weights_.storage.emplace_back(), c_.num_router_outputs(), hidden);
    w.moe.e_score_correction_bias = vector(c_.num_router_outputs(), 0);
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      w.moe.gate_proj.push_back(product(c_.expert_ffn_hidden_size, hidden));
      w.moe.up_proj.push_back(product(c_.expert_ffn_hidden_size, hidden));
      w.moe.down_proj.push_back(product(hidden, c_.expert_ffn_hidden_size));
    }
    return w;
  }

  Bench& b_;
  const ModelConfig& c_;
  bool fp8_;
  ModelWeights weights_;
};

// Throws OutOfMemory where the host has no room. The system would not refuse the memory but kill the process.
void check_host_memory(const ModelConfig& config) {
  constexpr double kGiB = 1 << 30;
  constexpr int64_t kReserve = int64_t{2} << 30;
  const int64_t free_bytes = available_memory() - kReserve, bytes = table_bytes(config);
  if (bytes <= free_bytes) return;
  const int64_t rows = std::max<int64_t>(free_bytes, 0) / (config.hidden_size * 2) - 24;
  throw OutOfMemory(str_cat("tables of ", static_cast<double>(bytes) / kGiB, " GiB in host memory, of which ",
                            static_cast<double>(free_bytes) / kGiB, " GiB are free: give --table-rows ", rows,
                            " or less, or --tables device"));
}

}  // namespace

int64_t table_bytes(const ModelConfig& config) {
  const NgramConfig& n = *config.ngram;
  int64_t rows = 0;
  for (int64_t t = 0; t < n.num_tables(); ++t) rows += n.rows_of(t);
  return rows * (config.hidden_size / n.num_tables()) * 2;
}

ModelWeights random_weights(Bench& bench, bool fp8) { return RandomWeights(bench, fp8).make(); }

void make_tables(Bench& bench, ModelWeights& weights, Placement placement) {
  const ModelConfig& c = bench.config();
  const NgramConfig& n = *c.ngram;
  if (placement == Placement::host && !bench.check()) check_host_memory(c);
  const Weight projection = weights.ngram.projection;
  weights.ngram = {};
  weights.ngram.projection = projection;
  for (int64_t t = 0; t < n.num_tables(); ++t) {
    Weight table{.format = WeightFormat::bf16,
                 .out_features = n.rows_of(t),
                 .in_features = c.hidden_size / n.num_tables(),
                 .placement = placement};
    if (placement == Placement::host) {
      void* data = weights.host_storage.emplace_back(bench.device(), table.num_bytes()).data();
      bench.randomise(data, table.num_bytes());
      table.data = data;
    } else {
      table = bench.matrix(weights.storage.emplace_back(), table.out_features, table.in_features);
    }
    weights.ngram.tables.push_back(table);
    weights.ngram.moduli.push_back(n.rows_of(t));
    append_powers(weights.ngram.powers, c.vocab_size, n.rows_of(t), n.emb_neighbor_num);
  }
}

ModelWeights views_of(const ModelWeights& weights) {
  ModelWeights views;
  views.word_embedding = weights.word_embedding;
  views.ngram = weights.ngram;
  views.layers = weights.layers;
  views.final_norm = weights.final_norm;
  views.lm_head = weights.lm_head;
  return views;
}

}  // namespace longcat
