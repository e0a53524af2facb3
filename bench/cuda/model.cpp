// The whole model with random weights: what it takes of the memory, and what steps of it cost.
#include "model/model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "cuda/device/arena.h"
#include "model/kv_cache.h"
#include "random_weights.h"
#include "suites.h"

namespace longcat {

namespace {

constexpr double kGiB = 1 << 30;

// Bytes of weights that a step of `tokens` decodes reads: all but the tables and the experts that nobody picked.
double weight_bytes(const ModelConfig& c, double device_bytes, int64_t tokens) {
  const double experts = 6.0 * static_cast<double>(c.num_layers * c.n_routed_experts) *
                         static_cast<double>(c.hidden_size * c.expert_ffn_hidden_size);
  const double picked = static_cast<double>(c.moe_topk) / static_cast<double>(c.num_router_outputs());
  const double hit = 1 - std::pow(1 - picked, static_cast<double>(tokens));
  return device_bytes - 2.0 * static_cast<double>(c.vocab_size * c.hidden_size) - experts * (1 - hit);
}

class ModelBench {
 public:
  ModelBench(Bench& bench, ModelWeights weights, int64_t device_weight_bytes)
      : b_(bench),
        c_(bench.config()),
        max_tokens_(bench.check() ? 5 : 2048),
        max_sequences_(bench.check() ? 3 : 64),
        context_(bench.check() ? 70 : 1024),
        device_weight_bytes_(static_cast<double>(device_weight_bytes)),
        model_(bench.ops(), c_, single_rank(c_), std::move(weights), max_tokens_, max_tokens_),
        batches_(bench, max_tokens_, max_sequences_, std::max(context_ + 1, max_tokens_)),
        cache_(bench.device(), c_, batches_.num_blocks(), DType::bf16),
        logits_(bench.device(), max_sequences_ * c_.vocab_size * 4),
        rows_(bench.device(), max_sequences_ * 4),
        sampled_(bench.device(), max_sequences_ * 4) {
    std::vector<int32_t> rows(static_cast<size_t>(max_sequences_));
    std::iota(rows.begin(), rows.end(), 0);
    b_.device().copy_from_host(rows_.data(), rows.data(), rows_.bytes());
  }

  // Whether every replayed step gave the bits of the eager one.
  bool run() {
    std::printf(
        "\n| step | us | tokens/s | GB/s of weights | of the bandwidth | graph nodes | with sampling, us | replay = "
        "eager |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (const int64_t tokens : b_.check() ? std::vector<int64_t>{1, 3} : std::vector<int64_t>{1, 8, 64})
      decode(tokens);
    std::printf("\n| prompt | ms | tokens/s |\n| --- | --- | --- |\n");
    for (const int64_t tokens : {max_tokens_ / 4, max_tokens_}) prefill(tokens);
    return same_;
  }

 private:
  Tensor logits(int64_t tokens) const { return logits_.tensor(DType::f32, {tokens, c_.vocab_size}); }

  void compute(const ForwardBatch& batch, int64_t tokens) {
    model_.logits(logits(tokens), model_.forward(batch, cache_), rows_.tensor(DType::i32, {tokens}));
  }

  std::vector<float> host_logits(int64_t tokens) {
    std::vector<float> out(static_cast<size_t>(tokens * c_.vocab_size));
    b_.device().copy_to_host(out.data(), logits_.data(), static_cast<int64_t>(out.size()) * 4);
    return out;
  }

  void decode(int64_t tokens) {
    const ForwardBatch batch = batches_.decodes(tokens, context_);
    b_.run([&] { compute(batch, tokens); });
    const std::vector<float> eager = host_logits(tokens);
    std::unique_ptr<Recording> recording;
    b_.run([&] { recording = b_.device().record([&] { compute(batch, tokens); }); });
    b_.run([&] { recording->launch(); });
    const std::vector<float> replayed = host_logits(tokens);
    const bool same = std::memcmp(eager.data(), replayed.data(), eager.size() * 4) == 0;
    same_ = same_ && same;
    const double us = b_.time([&] { recording->launch(); }, false);

    // As the engine does it: sampled, and the ids awaited by the host.
    std::vector<SamplingRow> rows;
    for (int32_t i = 0; i < tokens; ++i)
      rows.push_back({.temperature = 0.7, .top_p = 0.95, .logits_row = i, .sequence = i});
    const Tensor ids = sampled_.tensor(DType::i32, {tokens});
    std::vector<int32_t> host_ids(static_cast<size_t>(tokens));
    const auto step = [&] {
      recording->launch();
      b_.ops().sample(ids, logits(tokens), rows, cache_.lane(), batch.block_tables);
      b_.device().download(host_ids.data(), ids.raw(), ids.num_bytes());
    };
    std::vector<double> steps;
    for (int i = 0; i < (b_.check() ? 1 : 20); ++i) steps.push_back(b_.run(step));
    std::nth_element(steps.begin(), steps.begin() + static_cast<std::ptrdiff_t>(steps.size() / 2), steps.end());

    const double bytes = weight_bytes(c_, device_weight_bytes_, tokens);
    std::printf("| decode %ld, context %ld | %.0f | %.0f | %.0f | %.0f %% | %ld | %.0f | %s |\n", tokens, context_, us,
                1e6 * static_cast<double>(tokens) / us, bytes / us / 1e3, 100 * bytes / us / b_.peak_bytes(),
                recording->num_nodes(), steps[steps.size() / 2], same ? "yes" : "NO");
    std::fflush(stdout);
  }

  void prefill(int64_t tokens) {
    if (tokens == 0) return;
    const ForwardBatch batch = batches_.prompt(tokens, 0);
    const double us = b_.time([&] { model_.forward(batch, cache_); }, false, 3);
    std::printf("| %ld | %.1f | %.0f |\n", tokens, us / 1e3, 1e6 * static_cast<double>(tokens) / us);
    std::fflush(stdout);
  }

  Bench& b_;
  ModelConfig c_;
  int64_t max_tokens_, max_sequences_, context_;
  double device_weight_bytes_;
  bool same_ = true;
  Model model_;
  BatchMaker batches_;
  KvCache cache_;
  Buffer logits_, rows_, sampled_;
};

}  // namespace

bool bench_model(Bench& bench) {
  const Arena& arena = bench.arena();
  const int64_t before = arena.used_bytes();
  const auto begin = std::chrono::steady_clock::now();
  ModelWeights weights = random_weights(bench);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  int64_t table_bytes = 0;
  for (const Weight& table : weights.ngram.tables) table_bytes += table.num_bytes();
  std::printf("weights made in %.1f s: %.1f GiB on the device, tables %.1f GiB in pinned host memory\n",
              seconds.count(), static_cast<double>(arena.used_bytes() - before) / kGiB,
              static_cast<double>(table_bytes) / kGiB);
  ModelBench model(bench, std::move(weights), arena.used_bytes() - before);
  const bool same = model.run();
  std::printf("\npeak memory %.2f GiB of an arena of %.2f GiB\n", static_cast<double>(arena.peak_bytes()) / kGiB,
              static_cast<double>(arena.bytes()) / kGiB);
  return same;
}

}  // namespace longcat
