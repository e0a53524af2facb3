// Times each op by itself, cold, beside the time that the device's bandwidth or tensor cores allow. The ops that a step
// waits for longest come first.
#include <algorithm>
#include <random>

#include "model/activations.h"
#include "model/kv_cache.h"
#include "suites.h"

namespace longcat {

namespace {

std::string tokens_of(int64_t count) { return count == 1 ? "1 token" : str_cat(count, " tokens"); }

class OpsBench {
 public:
  OpsBench(Bench& bench, Report& report)
      : b_(bench),
        report_(report),
        c_(bench.config()),
        buffers_(bench.device(), c_, make_shard(c_, 1, 1, 0), kMaxTokens, DType::bf16),
        few_(bench, kMaxTokens, 1, kMaxContext),
        many_(bench, kMaxSequences, kMaxSequences, kMaxContext / 4),
        cache_(bench.device(), one_layer(c_), std::max(few_.num_blocks(), many_.num_blocks()), DType::bf16),
        ones_storage_(bench.device(), c_.hidden_size * 4),
        ones_(ones_storage_.tensor(DType::f32, {c_.hidden_size})) {
    const std::vector<float> ones(static_cast<size_t>(c_.hidden_size), 1);
    b_.device().copy_from_host(ones_.raw(), ones.data(), ones_.num_bytes());
    Activations all = buffers_.first(kMaxTokens);
    for (const Tensor& t : {all.residual, all.x, all.h, all.ngram_rows, all.q_a, all.q, all.kv_a, all.q_latent,
                            all.latent_out, all.attn_out, all.gate, all.up, all.moe_in})
      b_.randomise(t.raw(), t.num_bytes());
    const Tensor latents = cache_.latents(0);
    b_.randomise(latents.raw(), cache_.num_blocks() * latents.stride(0) * 2);
  }

  void run() {
    report_.header("op");
    for (const int64_t tokens : kTokens) router(tokens);
    decode(few_, 1, kMaxContext / 16);
    decode(few_, 1, kMaxContext);
    decode(many_, kMaxSequences, kMaxContext / 16);
    decode(many_, kMaxSequences, kMaxContext / 4);
    for (const int64_t tokens : kTokens) experts(tokens);
    for (const int64_t rows : {int64_t{1}, kMaxSequences}) sampling(rows);
    for (const int64_t tokens : kTokens) {
      a_ = buffers_.first(tokens);
      linears(tokens);
      rows(tokens);
    }
    prompt();
  }

 private:
  static constexpr int64_t kTokens[] = {1, 8, 64, 512, 2048};
  static constexpr int64_t kMaxTokens = 2048, kMaxSequences = 64, kMaxContext = 16384;

  // Two sub-layers suffice for one op; the cache has one more for the MTP layer.
  static ModelConfig one_layer(ModelConfig c) {
    c.num_layers = 1;
    return c;
  }

  // bytes: to read and write at least. flops: a multiply-add counts as 2.
  void row(const std::string& what, double bytes, double flops, const std::function<void()>& work) {
    if (!report_.has_time(what, 0.1)) return;
    const double us = b_.time(work, true, std::min(0.3, report_.seconds_left()));
    report_.row(what, us, "us", std::max(bytes / b_.peak_bytes(), flops / b_.peak_flops()) / us);
  }

  void linear(const char* op, Tensor out, Tensor x, int64_t out_features) {
    const int64_t tokens = x.size(0), in_features = x.size(1);
    Buffer storage;
    const Weight weight = b_.matrix(storage, out_features, in_features);
    row(str_cat(op, ", ", tokens_of(tokens)), static_cast<double>(weight.num_bytes() + x.num_bytes() + out.num_bytes()),
        2.0 * static_cast<double>(tokens * in_features * out_features), [&] { b_.ops().linear(out, x, weight); });
  }

  void per_head(const char* op, Tensor out, Tensor x) {
    const int64_t heads = x.size(1), out_dim = out.size(2), in_dim = x.size(2);
    Buffer storage;
    const Weight weight = b_.matrix(storage, heads * out_dim, in_dim);
    row(str_cat(op, ", ", tokens_of(x.size(0))),
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
    if (tokens > kMaxSequences) return;  // ops that only decode steps have
    per_head("k_up", a_.q_latent, a_.q.slice(2, 0, c_.qk_nope_head_dim));
    per_head("v_up", a_.attn_out, a_.latent_out);
    const Buffer logits(b_.device(), tokens * c_.vocab_size * 4);
    linear("lm_head", logits.tensor(DType::f32, {tokens, c_.vocab_size}), a_.h, c_.vocab_size);
  }

  void rows(int64_t tokens) {
    const double bytes = static_cast<double>(a_.x.num_bytes());
    row("add_rms_norm, " + tokens_of(tokens), 4 * bytes, 0,
        [&] { b_.ops().add_rms_norm(a_.h, a_.residual, a_.x, ones_, 1e-5f); });
    row("silu_mul, " + tokens_of(tokens), 3 * static_cast<double>(a_.gate.num_bytes()), 0,
        [&] { b_.ops().silu_mul(a_.gate, a_.gate, a_.up); });
    Buffer word_storage, projection_storage;
    const Weight word = b_.matrix(word_storage, c_.vocab_size, c_.hidden_size);
    const Weight projection = b_.matrix(projection_storage, c_.hidden_size, c_.hidden_size);
    const ForwardBatch batch = few_.prompt(tokens);
    row("embed, " + tokens_of(tokens), static_cast<double>(projection.num_bytes()) + 3 * bytes,
        2.0 * static_cast<double>(tokens * c_.hidden_size * c_.hidden_size),
        [&] { b_.ops().embed(a_.residual, batch.token_ids, word, 0, a_.ngram_rows, projection, 1.0f / 13); });
  }

  // A routing by random scores.
  void route(const ForwardBatch& batch, const Weight& classifier, const Buffer& bias) {
    b_.ops().moe_route(a_.routing, a_.router_scores, a_.moe_in, classifier,
                       bias.tensor(DType::f32, {c_.num_router_outputs()}), batch.num_real_tokens, c_.n_routed_experts,
                       0, static_cast<float>(c_.routed_scaling_factor));
  }

  void router(int64_t tokens) {
    a_ = buffers_.first(tokens);
    Buffer storage;
    const Weight classifier = b_.router(storage, c_.num_router_outputs(), c_.hidden_size);
    const Buffer bias(b_.device(), c_.num_router_outputs() * 4);
    const ForwardBatch batch = few_.prompt(tokens);
    row("moe_route, " + tokens_of(tokens), static_cast<double>(classifier.num_bytes() + a_.moe_in.num_bytes()),
        2.0 * static_cast<double>(tokens * c_.hidden_size * c_.num_router_outputs()),
        [&] { route(batch, classifier, bias); });
  }

  // The matrices of all experts, one behind the other.
  std::vector<Weight> expert_matrices(Buffer& storage, int64_t out_features, int64_t in_features) {
    const Weight all = b_.matrix(storage, c_.n_routed_experts * out_features, in_features);
    std::vector<Weight> experts;
    for (int64_t e = 0; e < c_.n_routed_experts; ++e) {
      Weight& expert = experts.emplace_back(all);
      expert.out_features = out_features;
      expert.data = static_cast<const char*>(all.data) + e * out_features * in_features * 2;
    }
    return experts;
  }

  void experts(int64_t tokens) {
    const int64_t width = c_.expert_ffn_hidden_size, rows = tokens * c_.moe_topk;
    a_ = buffers_.first(tokens);
    Buffer storage[4];
    const Weight classifier = b_.router(storage[3], c_.num_router_outputs(), c_.hidden_size);
    const Buffer bias(b_.device(), c_.num_router_outputs() * 4);
    const ForwardBatch batch = few_.prompt(tokens);
    b_.run([&] { route(batch, classifier, bias); });
    std::vector<int32_t> offsets(static_cast<size_t>(c_.n_routed_experts) + 1);
    b_.device().copy_to_host(offsets.data(), a_.routing.expert_offsets.raw(), a_.routing.expert_offsets.num_bytes());
    int64_t hit = 0;
    for (size_t e = 0; e + 1 < offsets.size(); ++e) hit += offsets[e + 1] > offsets[e];
    const std::vector<Weight> gate = expert_matrices(storage[0], width, c_.hidden_size),
                              up = expert_matrices(storage[1], width, c_.hidden_size),
                              down = expert_matrices(storage[2], c_.hidden_size, width);
    const ExpertWeights experts{.gate_proj = gate, .up_proj = up, .down_proj = down};
    row("moe_experts, " + tokens_of(tokens),
        static_cast<double>(hit * 3 * gate[0].num_bytes() + 2 * a_.moe_in.num_bytes()),
        6.0 * static_cast<double>(offsets.back()) * static_cast<double>(c_.hidden_size * width), [&] {
          b_.ops().moe_experts(a_.moe_out, a_.expert_gate.first(rows), a_.expert_up.first(rows),
                               a_.expert_out.first(rows), a_.moe_in, a_.routing, experts);
        });
  }

  void decode(BatchMaker& maker, int64_t sequences, int64_t context) {
    const int64_t heads = c_.num_attention_heads, latent = c_.latent_dim();
    const Activations a = buffers_.first(sequences);
    const ForwardBatch batch = maker.decodes(sequences, context);
    const MlaShape shape{.num_heads = heads,
                         .kv_lora_rank = c_.kv_lora_rank,
                         .qk_nope_head_dim = c_.qk_nope_head_dim,
                         .qk_rope_head_dim = c_.qk_rope_head_dim,
                         .v_head_dim = c_.v_head_dim};
    b_.run([&] { b_.ops().plan_decode(batch, shape, cache_.dtype(), 0); });
    row(str_cat("mla_decode, ", sequences, " x ", context / 1024, "k"),
        static_cast<double>(sequences * context * latent * 2),
        2.0 * static_cast<double>(sequences * context * heads) * static_cast<double>(latent + c_.kv_lora_rank), [&] {
          b_.ops().mla_decode(a.latent_out, a.q_latent, a.q.slice(2, c_.qk_nope_head_dim, c_.qk_head_dim()),
                              cache_.latents(0), batch, 0.07f);
        });
  }

  // The ops that only prompts have.
  void prompt() {
    const int64_t heads = c_.num_attention_heads, latent = c_.latent_dim(), tokens = 512;
    const Tensor latents = cache_.latents(0);
    Buffer k_storage, v_storage;
    const Weight k_up = b_.matrix(k_storage, heads * c_.kv_lora_rank, c_.qk_nope_head_dim);
    const Weight v_up = b_.matrix(v_storage, heads * c_.v_head_dim, c_.kv_lora_rank);
    const Activations a = buffers_.first(tokens);
    const ForwardBatch batch = few_.prompt(tokens);
    row("rope, " + tokens_of(tokens), static_cast<double>(2 * 2 * tokens * heads * c_.qk_rope_head_dim), 0,
        [&] { b_.ops().rope(a.q.slice(2, c_.qk_nope_head_dim, c_.qk_head_dim()), a.cos, a.sin); });
    row("mla_norm_store, " + tokens_of(tokens), 2 * static_cast<double>(a.kv_a.num_bytes() + a.q_a.num_bytes()), 0,
        [&] {
          b_.ops().mla_norm_store(a.q_a, ones_.first(c_.q_lora_rank), latents, a.kv_a, ones_.first(c_.kv_lora_rank),
                                  1e-6f, a.cos, a.sin, batch);
        });
    const double pairs = static_cast<double>(heads * tokens * (tokens + 1) / 2);
    row("mla_prefill, " + tokens_of(tokens), static_cast<double>(tokens * latent * 2),
        2 * pairs * static_cast<double>(c_.qk_head_dim() + c_.v_head_dim) +
            2.0 * static_cast<double>(heads * tokens * c_.kv_lora_rank * (c_.qk_nope_head_dim + c_.v_head_dim)),
        [&] { b_.ops().mla_prefill(a.attn_out, a.q, latents, k_up, v_up, batch, 0.07f); });
  }

  void sampling(int64_t count) {
    const int64_t vocab = c_.vocab_size;
    const Buffer logits(b_.device(), count * vocab * 4), ids(b_.device(), count * 4), wide(b_.device(), count * 16);
    const Buffer wide_ids(b_.device(), count * 16), ranks(b_.device(), count * 4);
    b_.randomise(logits.data(), logits.bytes(), DType::f32);
    const ForwardBatch batch = many_.decodes(count, 11);
    const Tensor token_ids = ids.tensor(DType::i32, {count}), all = logits.tensor(DType::f32, {count, vocab});
    const std::string shape = count == 1 ? ", 1 row" : str_cat(", ", count, " rows");
    const double bytes = static_cast<double>(logits.bytes());
    const auto sample = [&](const char* op, SamplingRow like) {
      std::vector<SamplingRow> rows;
      for (int32_t i = 0; i < count; ++i) {
        like.logits_row = like.sequence = i;
        like.position = 10;
        rows.push_back(like);
      }
      b_.run([&] { b_.ops().set_sampling_rows(rows); });
      row(op + shape, bytes, 0, [&] { b_.ops().sample(token_ids, all, cache_.token_lane(), batch.block_tables); });
    };
    // The logits have a deviation of 0.02. The temperature spreads them as wide as a model's.
    sample("sample top-k top-p", {.temperature = 0.005, .top_k = 40, .top_p = 0.95, .repetition_penalty = 1.06});
    sample("sample greedy", {.temperature = 0});
    sample("sample", {.temperature = 0.005});
    row("token_logprobs top 3" + shape, bytes, 0, [&] {
      b_.ops().token_logprobs(wide.tensor(DType::f32, {count, 4}), wide_ids.tensor(DType::i32, {count, 4}),
                              ranks.tensor(DType::i32, {count}), all, token_ids);
    });
  }

  Bench& b_;
  Report& report_;
  ModelConfig c_;
  ActivationBuffers buffers_;
  BatchMaker few_, many_;  // one long sequence, many short ones
  KvCache cache_;
  Buffer ones_storage_;
  Tensor ones_;
  Activations a_;  // buffers of the current step
};

}  // namespace

void bench_ops(Bench& bench, Report& report) { OpsBench(bench, report).run(); }

}  // namespace longcat
