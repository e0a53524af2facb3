// Tokens a second of a checkpoint, in llama-bench's terms, beside the limits of this machine.
//
//   longcat-bench CHECKPOINT [--prompt 512] [--generate 128] [--depth 0,4096] [--batch 1] [--threads N] [--rounds 5]
//                            [--filled 131072] [--chunk 512] [--kv-cache-dtype auto] [--kv-cache-memory GIB]
//
// ppN: N prompt tokens in one step, without sampling.
// tgN: N tokens generated one after another, `batch` sequences at once, after `depth` tokens of history.
// A history of --filled tokens is made up (filled_context.h). One row generates tokens behind it, one computes --chunk
// tokens of a prompt. These rows have no share.
// "weights": the bytes of the matrices that a step reads. Of the experts it counts as many as the step's tokens pick on
// average when all picks are equally likely.
// "share": the part of a limit that the run reached. For tg the limit is the read bandwidth; for pp it is the peak of
// the experts' format: f32, bf16, or exact integer products. limits_of_machine() measures them before the engine
// starts.
// tok/s is the median of the rounds; the best round stands beside it.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "base/available_threads.h"
#include "command_line.h"
#include "engine/engine.h"
#include "filled_context.h"
#include "machine_limits.h"
#include "ops/packed.h"
#include "timing.h"

using namespace longcat;
using bench::Clock;
using bench::median;
using bench::seconds_since;

namespace {

struct Arguments {
  std::string checkpoint, kv_cache_dtype = "auto";
  int64_t prompt = 512, generate = 128, batch = 1, rounds = 5;
  std::vector<int64_t> depths{0}, filled;
  int64_t chunk = 512, kv_cache_gib = 2;
  int threads = 0;
};

Arguments parse(int argc, char** argv) {
  bench::CommandLine line(argc, argv);
  const Arguments fallback;
  Arguments arguments{.checkpoint = line.checkpoint(),
                      .kv_cache_dtype = line.text("--kv-cache-dtype", fallback.kv_cache_dtype),
                      .prompt = line.number("--prompt", fallback.prompt),
                      .generate = line.number("--generate", fallback.generate),
                      .batch = line.number("--batch", fallback.batch),
                      .rounds = line.number("--rounds", fallback.rounds),
                      .depths = line.numbers("--depth", fallback.depths),
                      .filled = line.numbers("--filled", fallback.filled),
                      .chunk = line.number("--chunk", fallback.chunk),
                      .kv_cache_gib = line.number("--kv-cache-memory", fallback.kv_cache_gib),
                      .threads = static_cast<int>(line.number("--threads", fallback.threads))};
  line.finish();
  return arguments;
}

// The bytes and operations of a step's matrices.
struct Work {
  double bytes = 0;          // [bytes] read by a step of `tokens` tokens
  double multiply_adds = 0;  // operations of one token
  double bench::Limits::* peak = &bench::Limits::f32_flop_per_s;
};

Work work_of(const ModelWeights& weights, const ModelConfig& config, double tokens) {
  Work work;
  const auto add = [&](const Weight& w, double share_read, double share_computed) {
    work.bytes += share_read * static_cast<double>(w.num_bytes());
    work.multiply_adds += share_computed * static_cast<double>(w.out_features * w.in_features);
  };
  for (const LayerWeights& layer : weights.layers) {
    for (int i = 0; i < 2; ++i) {
      const AttentionWeights& a = layer.attention[i];
      for (const Weight* w : {&a.q_a_proj, &a.q_b_proj, &a.kv_a_proj, &a.k_up, &a.v_up, &a.o_proj,
                              &layer.ffn[i].gate_proj, &layer.ffn[i].up_proj, &layer.ffn[i].down_proj})
        add(*w, 1, 1);
    }
    add(layer.moe.classifier, 1, 1);
    const double picked = static_cast<double>(config.moe_topk) / static_cast<double>(config.num_router_outputs());
    const double met = 1 - std::pow(1 - picked, tokens);
    for (const auto* experts : {&layer.moe.gate_proj, &layer.moe.up_proj, &layer.moe.down_proj})
      for (const Weight& w : *experts) add(w, met, picked);
    const WeightFormat format = layer.moe.gate_proj.front().format;
    if (format == WeightFormat::bf16 || format == WeightFormat::bf16_x8) work.peak = &bench::Limits::bf16_flop_per_s;
    if (is_int8_x8(format)) work.peak = &bench::Limits::int8_op_per_s;
    if (is_int4_x8(format)) work.peak = &bench::Limits::int4_op_per_s;
  }
  if (!weights.ngram.projection.empty()) add(weights.ngram.projection, 1, 1);
  add(weights.lm_head, 1, 0);
  return work;
}

std::vector<int32_t> random_prompt(const ModelConfig& config, int64_t length, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> prompt(static_cast<size_t>(length));
  for (int32_t& id : prompt) id = static_cast<int32_t>(3 + random() % static_cast<uint32_t>(config.vocab_size - 3));
  return prompt;
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments = parse(argc, argv);
  const int threads = arguments.threads > 0 ? arguments.threads : available_threads();
  const bench::Limits limits = bench::limits_of_machine(threads);
  const Clock::time_point start = Clock::now();
  EngineOptions options{.kv_cache_dtype = arguments.kv_cache_dtype,
                        .max_num_seqs = arguments.batch,
                        .max_num_batched_tokens = std::max({int64_t{512}, arguments.prompt, arguments.chunk}),
                        .kv_cache_memory = arguments.kv_cache_gib << 30,
                        .enable_prefix_caching = false,
                        .num_threads = threads};
  Engine engine(arguments.checkpoint, options);
  const double load_s = seconds_since(start);
  std::printf("%s, %s, %d threads; loaded in %.2f s\n", arguments.checkpoint.c_str(), name_of(cpu_isa()), threads,
              load_s);
  std::printf("%s\n\n", bench::text(limits).c_str());
  std::printf("| test | batch | tok/s | weights [GB/step] | GB/s | GOP/s | share | best tok/s | its share |\n");
  std::printf("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");

  std::vector<std::pair<std::string, double>> best_shares;  // of each row, its best share
  std::vector<StepOutput> outputs;
  SamplingParams params;
  params.temperature = 0;
  if (arguments.prompt > 0) {
    const Work work = work_of(engine.model().weights(), engine.config(), static_cast<double>(arguments.prompt));
    std::vector<double> rates;
    for (int64_t round = 0; round <= arguments.rounds; ++round) {
      params.max_tokens = 1;
      engine.add_request(random_prompt(engine.config(), arguments.prompt, static_cast<uint32_t>(round)), params);
      const Clock::time_point begin = Clock::now();
      while (engine.has_work()) engine.step(outputs);
      const double seconds = seconds_since(begin);
      if (round == 0) continue;
      rates.push_back(static_cast<double>(arguments.prompt) / seconds);
    }
    const double rate = median(rates), best = *std::max_element(rates.begin(), rates.end());
    const double share_of_rate = 2 * work.multiply_adds / (limits.*work.peak);  // [1 / (tok/s)]
    std::printf("| pp%ld | 1 | %.2f | %.3f | %.1f | %.1f | %.1f %% | %.2f | %.1f %% |\n", arguments.prompt, rate,
                work.bytes / 1e9, work.bytes * rate / static_cast<double>(arguments.prompt) / 1e9,
                2 * work.multiply_adds * rate / 1e9, 100 * share_of_rate * rate, best, 100 * share_of_rate * best);
    best_shares.emplace_back(str_cat("pp", arguments.prompt), share_of_rate * best);
    std::fflush(stdout);
  }
  for (const int64_t depth : arguments.depths) {
    if (arguments.generate <= 0) break;
    params.max_tokens = arguments.generate * (arguments.rounds + 1) + 1;
    for (int64_t i = 0; i < arguments.batch; ++i)
      engine.add_request(random_prompt(engine.config(), std::max<int64_t>(1, depth), static_cast<uint32_t>(100 + i)),
                         params);
    const auto prefilling = [&] {
      bool any = false;
      engine.scheduler().for_each([&](const Sequence& s) { any = any || s.num_output_tokens() < 1; });
      return any;
    };
    while (prefilling()) engine.step(outputs);
    const Work work = work_of(engine.model().weights(), engine.config(), static_cast<double>(arguments.batch));
    const double bytes_per_token = work.bytes / static_cast<double>(arguments.batch);
    std::vector<double> rates;
    for (int64_t round = 0; round <= arguments.rounds; ++round) {
      const Clock::time_point begin = Clock::now();
      for (int64_t i = 0; i < arguments.generate; ++i) engine.step(outputs);
      const double seconds = seconds_since(begin);
      if (round == 0) continue;
      rates.push_back(static_cast<double>(arguments.generate * arguments.batch) / seconds);
    }
    while (engine.has_work()) engine.step(outputs);
    outputs.clear();
    const double rate = median(rates), best = *std::max_element(rates.begin(), rates.end());
    const double share_of_rate = bytes_per_token / limits.read_bytes_per_s;
    std::printf("| tg%ld%s | %ld | %.2f | %.3f | %.1f | %.1f | %.1f %% | %.2f | %.1f %% |\n", arguments.generate,
                depth ? str_cat(" @ d", depth).c_str() : "", arguments.batch, rate, work.bytes / 1e9,
                bytes_per_token * rate / 1e9, 2 * work.multiply_adds * rate / 1e9, 100 * share_of_rate * rate, best,
                100 * share_of_rate * best);
    best_shares.emplace_back(str_cat("tg", arguments.generate, " of batch ", arguments.batch), share_of_rate * best);
    std::fflush(stdout);
  }
  for (const int64_t depth : arguments.filled) {
    bench::FilledContext context(engine, depth, std::max<int64_t>(1, arguments.chunk));
    const auto measure = [&](const std::string& test, int64_t tokens, auto&& step) {
      std::vector<double> rates;
      for (int64_t round = 0; round <= arguments.rounds; ++round) {
        const Clock::time_point begin = Clock::now();
        step();
        if (round > 0) rates.push_back(static_cast<double>(tokens) / seconds_since(begin));
      }
      const double best = *std::max_element(rates.begin(), rates.end());
      std::printf("| %s @ d%ld filled | 1 | %.2f | | | | | %.2f | |\n", test.c_str(), depth, median(rates), best);
      std::fflush(stdout);
    };
    if (arguments.generate > 0)
      measure(str_cat("tg", arguments.generate), arguments.generate, [&] {
        for (int64_t i = 0; i < arguments.generate; ++i) context.generate();
      });
    if (arguments.chunk > 0)
      measure(str_cat("pp", arguments.chunk), arguments.chunk, [&] { context.prompt(arguments.chunk); });
  }
  for (const auto& [test, share] : best_shares) bench::warn_above_limit(test, share);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "longcat-bench: %s\n", error.what());
  return 1;
}
