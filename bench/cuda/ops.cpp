// Each op by itself, cold: how near its time is to what the device's bandwidth or its tensor cores allow.
#include <algorithm>
#include <cstdio>
#include <random>

#include "model/activations.h"
#include "model/kv_cache.h"
#include "suites.h"

namespace longcat {

namespace {

class OpsBench {
 public:
  explicit OpsBench(Bench& bench)
      : b_(bench),
        c_(bench.config()),
        max_tokens_(bench.check() ? 5 : 2048),
        max_sequences_(bench.check() ? 3 : 64),
        max_context_(bench.check() ? 256 : 16384),
        buffers_(bench.device(), c_, make_shard(c_, 1, 1, 0), max_tokens_, DType::bf16),
        few_(bench, max_tokens_, 1, max_context_),
        many_(bench, max_tokens_, max_sequences_, max_context_ / 4),
        cache_(bench.device(), one_layer(c_), std::max(few_.num_blocks(), many_.num_blocks()), DType::bf16),
        ones_storage_(bench.device(), c_.hidden_size * 4),
        ones_(ones_storage_.tensor(DType::f32, {c_.hidden_size})) {
    const std::vector<float> ones(static_cast<size_t>(c_.hidden_size), 1);
    b_.device().copy_from_host(ones_.raw(), ones.data(), ones_.num_bytes());
    Activations all = buffers_.first(max_tokens_);
    for (const Tensor& t : {all.residual, all.x, all.h, all.ngram_rows, all.q_a, all.q, all.kv_a, all.q_latent,
                            all.latent_out, all.attn_out, all.gate, all.up, all.moe_in})
      b_.randomise(t.raw(), t.num_bytes());
    const Tensor latents = cache_.latents(0);
    b_.randomise(latents.raw(), cache_.num_blocks() * latents.stride(0) * 2);
  }

  void run() {
    std::printf("\n| op | shape | us | GB/s | TFLOP/s | of the bound |\n| --- | --- | --- | --- | --- | --- |\n");
    for (const int64_t tokens : b_.check() ? std::vector<int64_t>{1, 5} : std::vector<int64_t>{1, 8, 64, 512, 2048}) {
      a_ = buffers_.first(tokens);
      linears(tokens);
      rows(tokens);
      moe(tokens);
    }
    attention();
    sampling();
  }

 private:
  // Two sub-layers suffice for one op; the cache has one more for the MTP layer.
  static ModelConfig one_layer(ModelConfig c) {
    c.num_layers = 1;
    return c;
  }

  // bytes: what must be read and written at least; flops: 2 a multiply-add.
  void row(const char* op, const std::string& shape, double bytes, double flops, const std::function<void()>& work) {
    const double us = b_.time(work, true);
    const double bound = std::max(bytes / b_.peak_bytes(), flops / b_.peak_flops());
    std::printf("| %s | %s | %.1f | %.0f | %.2f | %.0f %% |\n", op, shape.c_str(), us, bytes / us / 1e3,
                flops / us / 1e6, 100 * bound / us);
    std::fflush(stdout);
  }

  void linear(const char* op, Tensor out, Tensor x, int64_t out_features) {
    const int64_t tokens = x.size(0), in_features = x.size(1);
    Buffer storage;
    const Weight weight = b_.matrix(storage, out_features, in_features);
    row(op, str_cat(tokens, " x ", in_features, " -> ", out_features),
        static_cast<double>(weight.num_bytes() + x.num_bytes() + out.num_bytes()),
        2.0 * static_cast<double>(tokens * in_features * out_features), [&] { b_.ops().linear(out, x, weight); });
  }

  void per_head(const char* op, Tensor out, Tensor x) {
    const int64_t heads = x.size(1), out_dim = out.size(2), in_dim = x.size(2);
    Buffer storage;
    const Weight weight = b_.matrix(storage, heads * out_dim, in_dim);
    row(op, str_cat(x.size(0), " x ", heads, " x ", in_dim, " -> ", out_dim),
        static_cast<double>(weight.num_bytes() + x.num_bytes() + out.num_bytes()),
        2.0 * static_cast<double>(x.size(0) * heads * in_dim * out_dim),
        [&] { b_.ops().linear_per_head(out, x, weight); });
  }

  void linears(int64_t tokens) {
    const int64_t heads = c_.num_attention_heads;
    linear("q_a_proj", a_.q_a, a_.h, c_.q_lora_rank);
    linear("q_b_proj", a_.q.reshape({tokens, heads * c_.qk_head_dim()}), a_.q_a, heads * c_.qk_head_dim());
    linear("kv_a_proj", a_.kv_a, a_.h, c_.latent_dim());
    linear("o_proj", a_.x, a_.attn_out.reshape({tokens, heads * c_.v_head_dim}), c_.hidden_size);
    linear("ffn gate", a_.gate, a_.h, c_.ffn_hidden_size);
    linear("ffn down", a_.x, a_.gate, c_.hidden_size);
    if (tokens > max_sequences_) return;  // what only decodes do
    per_head("k_up", a_.q_latent, a_.q.slice(2, 0, c_.qk_nope_head_dim));
    per_head("v_up", a_.attn_out, a_.latent_out);
    const Buffer logits(b_.device(), tokens * c_.vocab_size * 4);
    linear("lm_head", logits.tensor(DType::f32, {tokens, c_.vocab_size}), a_.h, c_.vocab_size);
  }

  void rows(int64_t tokens) {
    const double bytes = static_cast<double>(a_.x.num_bytes());
    const std::string shape = str_cat(tokens, " x ", c_.hidden_size);
    row("add_rms_norm", shape, 4 * bytes, 0, [&] { b_.ops().add_rms_norm(a_.h, a_.residual, a_.x, ones_, 1e-5f); });
    row("silu_mul", str_cat(tokens, " x ", c_.ffn_hidden_size), 3 * static_cast<double>(a_.gate.num_bytes()), 0,
        [&] { b_.ops().silu_mul(a_.gate, a_.gate, a_.up); });
    Buffer word_storage, projection_storage;
    const Weight word = b_.matrix(word_storage, c_.vocab_size, c_.hidden_size);
    const Weight projection = b_.matrix(projection_storage, c_.hidden_size, c_.hidden_size);
    const ForwardBatch batch = few_.prompt(tokens, 0);
    row("embed", shape, static_cast<double>(projection.num_bytes()) + 3 * bytes,
        2.0 * static_cast<double>(tokens * c_.hidden_size * c_.hidden_size),
        [&] { b_.ops().embed(a_.residual, batch.token_ids, word, 0, a_.ngram_rows, projection, 1.0f / 13); });
  }

  void moe(int64_t tokens) {
    const int64_t outputs = c_.num_router_outputs(), width = c_.expert_ffn_hidden_size, rows = tokens * c_.moe_topk;
    std::vector<float> values(static_cast<size_t>(outputs * c_.hidden_size));
    std::mt19937 random(3);
    std::normal_distribution<float> normal(0, 0.02f);
    for (float& value : values) value = normal(random);
    Buffer classifier_storage(b_.device(), static_cast<int64_t>(values.size()) * 4);
    b_.device().copy_from_host(classifier_storage.data(), values.data(), classifier_storage.bytes());
    const Weight classifier{.out_features = outputs, .in_features = c_.hidden_size, .data = classifier_storage.data()};
    const Buffer bias(b_.device(), outputs * 4);
    const ForwardBatch batch = few_.prompt(tokens, 0);
    const auto route = [&] {
      b_.ops().moe_route(a_.routing, a_.router_scores, a_.moe_in, classifier, bias.tensor(DType::f32, {outputs}),
                         batch.num_real_tokens, c_.n_routed_experts, 0, static_cast<float>(c_.routed_scaling_factor));
    };
    row("moe_route", str_cat(tokens, " x ", c_.hidden_size, " -> ", outputs),
        static_cast<double>(classifier.num_bytes() + a_.moe_in.num_bytes()),
        2.0 * static_cast<double>(tokens * c_.hidden_size * outputs), route);

    std::vector<int32_t> offsets(static_cast<size_t>(c_.n_routed_experts) + 1);
    b_.device().copy_to_host(offsets.data(), a_.routing.expert_offsets.raw(), a_.routing.expert_offsets.num_bytes());
    int64_t hit = 0;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) hit += offsets[e + 1] > offsets[e];
    std::vector<Buffer> storage(3);
    std::vector<Weight> gate, up, down;
    const Weight gates = b_.matrix(storage[0], c_.n_routed_experts * width, c_.hidden_size);
    const Weight ups = b_.matrix(storage[1], c_.n_routed_experts * width, c_.hidden_size);
    const Weight downs = b_.matrix(storage[2], c_.n_routed_experts * c_.hidden_size, width);
    const auto expert = [&](const Weight& all, int64_t e, int64_t out_features, int64_t in_features) {
      return Weight{.format = all.format,
                    .out_features = out_features,
                    .in_features = in_features,
                    .data = static_cast<const char*>(all.data) + e * out_features * in_features * 2};
    };
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      gate.push_back(expert(gates, e, width, c_.hidden_size));
      up.push_back(expert(ups, e, width, c_.hidden_size));
      down.push_back(expert(downs, e, c_.hidden_size, width));
    }
    const ExpertWeights experts{.gate_proj = gate, .up_proj = up, .down_proj = down};
    row("moe_experts", str_cat(tokens, " x ", c_.hidden_size, ", ", offsets.back(), " rows of ", hit, " experts"),
        static_cast<double>(hit * 3 * gate[0].num_bytes() + 2 * a_.moe_in.num_bytes()),
        6.0 * static_cast<double>(offsets.back()) * static_cast<double>(c_.hidden_size * width), [&] {
          b_.ops().moe_experts(a_.moe_out, a_.expert_gate.first(rows), a_.expert_up.first(rows),
                               a_.expert_out.first(rows), a_.moe_in, a_.routing, experts);
        });
  }

  void attention() {
    const int64_t heads = c_.num_attention_heads, latent = c_.latent_dim();
    const Tensor latents = cache_.latents(0);
    const auto decode = [&](BatchMaker& maker, int64_t sequences, int64_t context) {
      const Activations a = buffers_.first(sequences);
      const ForwardBatch batch = maker.decodes(sequences, context - 1);
      row("mla_decode", str_cat(sequences, " x ", heads, " heads, context ", context),
          static_cast<double>(sequences * context * latent * 2),
          2.0 * static_cast<double>(sequences * context * heads) * static_cast<double>(latent + c_.kv_lora_rank), [&] {
            b_.ops().mla_decode(a.latent_out, a.q_latent, a.q.slice(2, c_.qk_nope_head_dim, c_.qk_head_dim()), latents,
                                batch, 0.07f);
          });
    };
    decode(few_, 1, max_context_ / 16);
    decode(few_, 1, max_context_);
    decode(many_, max_sequences_, max_context_ / 16);
    decode(many_, max_sequences_, max_context_ / 4);

    Buffer k_storage, v_storage;
    const Weight k_up = b_.matrix(k_storage, heads * c_.kv_lora_rank, c_.qk_nope_head_dim);
    const Weight v_up = b_.matrix(v_storage, heads * c_.v_head_dim, c_.kv_lora_rank);
    const int64_t tokens = std::min<int64_t>(max_tokens_, 512);
    const Activations a = buffers_.first(tokens);
    const ForwardBatch batch = few_.prompt(tokens, 0);
    const double pairs = static_cast<double>(heads * tokens * (tokens + 1) / 2);
    row("mla_prefill", str_cat(tokens, " x ", heads, " heads"), static_cast<double>(tokens * latent * 2),
        2 * pairs * static_cast<double>(c_.qk_head_dim() + c_.v_head_dim) +
            2.0 * static_cast<double>(heads * tokens * c_.kv_lora_rank * (c_.qk_nope_head_dim + c_.v_head_dim)),
        [&] { b_.ops().mla_prefill(a.attn_out, a.q, latents, k_up, v_up, batch, 0.07f); });
    row("mla_norm_store", str_cat(tokens, " x ", latent),
        2 * static_cast<double>(a.kv_a.num_bytes() + a.q_a.num_bytes()), 0, [&] {
          b_.ops().mla_norm_store(a.q_a, ones_.first(c_.q_lora_rank), latents, a.kv_a, ones_.first(c_.kv_lora_rank),
                                  1e-6f, a.cos, a.sin, batch);
        });
    row("rope", str_cat(tokens, " x ", heads, " x ", c_.qk_rope_head_dim),
        static_cast<double>(2 * 2 * tokens * heads * c_.qk_rope_head_dim), 0,
        [&] { b_.ops().rope(a.q.slice(2, c_.qk_nope_head_dim, c_.qk_head_dim()), a.cos, a.sin); });
  }

  void sampling() {
    const int64_t vocab = c_.vocab_size;
    for (const int64_t count : {int64_t{1}, max_sequences_}) {
      std::vector<float> values(static_cast<size_t>(count * vocab));
      std::mt19937 random(4);
      std::normal_distribution<float> normal(0, 3);
      for (float& value : values) value = normal(random);
      Buffer logits(b_.device(), count * vocab * 4), ids(b_.device(), count * 4), wide(b_.device(), count * 16);
      Buffer wide_ids(b_.device(), count * 16), ranks(b_.device(), count * 4);
      b_.device().copy_from_host(logits.data(), values.data(), logits.bytes());
      const ForwardBatch batch = many_.decodes(count, 10);
      const Tensor token_ids = ids.tensor(DType::i32, {count}), all = logits.tensor(DType::f32, {count, vocab});
      const double bytes = static_cast<double>(logits.bytes());
      const auto sample = [&](const char* op, SamplingRow like) {
        std::vector<SamplingRow> rows;
        for (int32_t i = 0; i < count; ++i) {
          like.logits_row = like.sequence = i;
          like.position = 10;
          rows.push_back(like);
        }
        row(op, str_cat(count, " x ", vocab), bytes, 0,
            [&] { b_.ops().sample(token_ids, all, rows, cache_.lane(), batch.block_tables); });
      };
      sample("sample greedy", {.temperature = 0});
      sample("sample", {.temperature = 0.7});
      sample("sample top-k top-p", {.temperature = 0.7, .top_k = 40, .top_p = 0.95, .repetition_penalty = 1.06});
      row("token_logprobs top 3", str_cat(count, " x ", vocab), bytes, 0, [&] {
        b_.ops().token_logprobs(wide.tensor(DType::f32, {count, 4}), wide_ids.tensor(DType::i32, {count, 4}),
                                ranks.tensor(DType::i32, {count}), all, token_ids);
      });
    }
  }

  Bench& b_;
  ModelConfig c_;
  int64_t max_tokens_, max_sequences_, max_context_;
  ActivationBuffers buffers_;
  BatchMaker few_, many_;  // one long sequence, many short ones
  KvCache cache_;
  Buffer ones_storage_;
  Tensor ones_;
  Activations a_;  // of the step in turn
};

}  // namespace

void bench_ops(Bench& bench) { OpsBench(bench).run(); }

}  // namespace longcat
