#include "random_weights.h"

#include <cmath>

namespace longcat {

namespace {

// Weights of the config's shapes: bf16, norms of 1, tables of zeros in pinned host memory (a row costs what it costs).
class RandomWeights {
 public:
  RandomWeights(Bench& bench, bool fp8_experts) : b_(bench), c_(bench.config()), fp8_experts_(fp8_experts) {}

  ModelWeights make() {
    weights_.word_embedding = matrix(c_.vocab_size, c_.hidden_size);
    ngram();
    for (int64_t l = 0; l < c_.num_layers; ++l) weights_.layers.push_back(layer());
    weights_.final_norm = vector(c_.hidden_size, 1);
    weights_.lm_head = matrix(c_.vocab_size, c_.hidden_size);
    return std::move(weights_);
  }

 private:
  Weight matrix(int64_t out_features, int64_t in_features) {
    return b_.matrix(weights_.storage.emplace_back(), out_features, in_features);
  }

  Weight expert(int64_t out_features, int64_t in_features) {
    if (!fp8_experts_) return matrix(out_features, in_features);
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

  void ngram() {
    const NgramConfig& n = *c_.ngram;
    const int64_t width = c_.hidden_size / n.num_tables();
    for (int64_t t = 0; t < n.num_tables(); ++t) {
      const HostBuffer& table = weights_.host_storage.emplace_back(b_.device(), n.rows_of(t) * width * 2);
      weights_.ngram.tables.push_back({.format = WeightFormat::bf16,
                                       .out_features = n.rows_of(t),
                                       .in_features = width,
                                       .data = table.data(),
                                       .placement = Placement::host});
      weights_.ngram.moduli.push_back(n.rows_of(t));
      append_powers(weights_.ngram.powers, c_.vocab_size, n.rows_of(t), n.emb_neighbor_num);
    }
    weights_.ngram.projection = matrix(c_.hidden_size, c_.hidden_size);
  }

  LayerWeights layer() {
    const int64_t heads = c_.num_attention_heads, hidden = c_.hidden_size;
    LayerWeights w;
    for (int i = 0; i < 2; ++i) {
      w.input_norm[i] = vector(hidden, 1);
      w.post_attention_norm[i] = vector(hidden, 1);
      w.attention[i] = {.q_a_proj = matrix(c_.q_lora_rank, hidden),
                        .q_a_norm = vector(c_.q_lora_rank, 1),
                        .q_b_proj = matrix(heads * c_.qk_head_dim(), c_.q_lora_rank),
                        .kv_a_proj = matrix(c_.latent_dim(), hidden),
                        .kv_a_norm = vector(c_.kv_lora_rank, 1),
                        .k_up = matrix(heads * c_.kv_lora_rank, c_.qk_nope_head_dim),
                        .v_up = matrix(heads * c_.v_head_dim, c_.kv_lora_rank),
                        .o_proj = matrix(hidden, heads * c_.v_head_dim)};
      w.ffn[i] = {.gate_proj = matrix(c_.ffn_hidden_size, hidden),
                  .up_proj = matrix(c_.ffn_hidden_size, hidden),
                  .down_proj = matrix(hidden, c_.ffn_hidden_size)};
    }
    // The router is f32: random as f32 bits would not be numbers of one size, so it is made on the host.
    std::vector<float> classifier(static_cast<size_t>(c_.num_router_outputs() * hidden));
    for (float& value : classifier) value = 0.02f * static_cast<float>(std::sin(1e4 * ++angle_));
    Buffer& storage = weights_.storage.emplace_back(b_.device(), static_cast<int64_t>(classifier.size()) * 4);
    b_.device().copy_from_host(storage.data(), classifier.data(), storage.bytes());
    w.moe.classifier = {.out_features = c_.num_router_outputs(), .in_features = hidden, .data = storage.data()};
    w.moe.e_score_correction_bias = vector(c_.num_router_outputs(), 0);
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      w.moe.gate_proj.push_back(expert(c_.expert_ffn_hidden_size, hidden));
      w.moe.up_proj.push_back(expert(c_.expert_ffn_hidden_size, hidden));
      w.moe.down_proj.push_back(expert(hidden, c_.expert_ffn_hidden_size));
    }
    return w;
  }

  Bench& b_;
  const ModelConfig& c_;
  bool fp8_experts_;
  ModelWeights weights_;
  double angle_ = 0;
};

}  // namespace

ModelWeights random_weights(Bench& bench, bool fp8_experts) { return RandomWeights(bench, fp8_experts).make(); }

}  // namespace longcat
