// Tokens a second of a checkpoint, in llama-bench's terms, beside the limits of this machine.
//
//   longcat-bench CHECKPOINT [--prompt 512] [--generate 128] [--depth 0,4096] [--batch 1] [--threads N] [--rounds 5]
//                            [--kv-cache-dtype auto]
//
// ppN: N prompt tokens in one step, without sampling.
// tgN: N tokens generated one after another, `batch` sequences at once, after `depth` tokens of history.
// "weights": the bytes of the matrices that a step reads. Of the experts it counts as many as the step's tokens pick on
// average when all picks are equally likely.
// "share": the part of a limit that the round reached, as measured around the round; the median of the rounds. The
// limit is the read bandwidth for tg. For pp it is the f32 peak, or the peak of exact integer products where the
// experts are int8 or int4.
// The last columns show the best round, and its share of the best limit of all rounds: the figure without other users
// of the machine.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "command_line.h"
#include "engine/engine.h"
#include "limits.h"
#include "timing.h"

using namespace longcat;
using bench::Clock;
using bench::median;
using bench::seconds_since;

namespace {

struct Arguments {
  std::string checkpoint, kv_cache_dtype = "auto";
  int64_t prompt = 512, generate = 128, batch = 1, rounds = 5;
  std::vector<int64_t> depths{0};
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
    if (format == WeightFormat::int8_x8) work.peak = &bench::Limits::int8_op_per_s;
    if (format == WeightFormat::int4_x8) work.peak = &bench::Limits::int4_op_per_s;
  }
  if (!weights.ngram.projection.empty()) add(weights.ngram.projection, 1, 1);
  add(weights.lm_head, 1, 0);
  return work;
}

// One round, and the limits of the machine around it: the mean of three measurements before and three after.
class Stopwatch {
 public:
  explicit Stopwatch(bench::LimitsMeter& meter) : meter_(meter) {
    measure();
    begin_ = Clock::now();
  }
  double stop() {
    const double seconds = seconds_since(begin_);
    measure();
    return seconds;
  }
  const bench::Limits& limits() const { return limits_; }

 private:
  static constexpr int kTimes = 3;
  void measure() {
    for (int i = 0; i < kTimes; ++i) {
      const bench::Limits now = meter_.measure();
      limits_.read_bytes_per_s += now.read_bytes_per_s / (2 * kTimes);
      limits_.f32_flop_per_s += now.f32_flop_per_s / (2 * kTimes);
      limits_.int4_op_per_s += now.int4_op_per_s / (2 * kTimes);
      limits_.int8_op_per_s += now.int8_op_per_s / (2 * kTimes);
    }
  }

  bench::LimitsMeter& meter_;
  bench::Limits limits_;
  Clock::time_point begin_;
};

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
  const Clock::time_point start = Clock::now();
  EngineOptions options{.kv_cache_dtype = arguments.kv_cache_dtype,
                        .max_num_seqs = arguments.batch,
                        .max_num_batched_tokens = std::max<int64_t>(512, arguments.prompt),
                        .kv_cache_memory = int64_t{2} << 30,
                        .enable_prefix_caching = false,
                        .num_threads = threads};
  Engine engine(arguments.checkpoint, options);
  const double load_s = seconds_since(start);
  ThreadPool pool(threads);
  bench::LimitsMeter meter(pool);
  const bench::Limits limits = meter.best();
  std::printf("%s, %s, %d threads; loaded in %.2f s\n", arguments.checkpoint.c_str(), name_of(cpu_isa()), threads,
              load_s);
  std::printf("read %.1f GB/s, f32 %.0f GFLOP/s, int8 x int8 %.0f GOP/s, int4 x int8 %.0f GOP/s\n\n",
              limits.read_bytes_per_s / 1e9, limits.f32_flop_per_s / 1e9, limits.int8_op_per_s / 1e9,
              limits.int4_op_per_s / 1e9);
  std::printf("| test | batch | tok/s | weights [GB/step] | GB/s | GOP/s | share | best tok/s | its share |\n");
  std::printf("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");

  std::vector<StepOutput> outputs;
  SamplingParams params;
  params.temperature = 0;
  if (arguments.prompt > 0) {
    const Work work = work_of(engine.model().weights(), engine.config(), static_cast<double>(arguments.prompt));
    std::vector<double> rates, shares;
    for (int64_t round = 0; round <= arguments.rounds; ++round) {
      params.max_tokens = 1;
      engine.add_request(random_prompt(engine.config(), arguments.prompt, static_cast<uint32_t>(round)), params);
      Stopwatch stopwatch(meter);
      while (engine.has_work()) engine.step(outputs);
      const double seconds = stopwatch.stop();
      if (round == 0) continue;
      rates.push_back(static_cast<double>(arguments.prompt) / seconds);
      const double peak = stopwatch.limits().*work.peak;
      shares.push_back(2 * work.multiply_adds * rates.back() / peak);
    }
    const double rate = median(rates), best = *std::max_element(rates.begin(), rates.end());
    std::printf("| pp%ld | 1 | %.2f | %.3f | %.1f | %.1f | %.1f %% | %.2f | %.1f %% |\n", arguments.prompt, rate,
                work.bytes / 1e9, work.bytes * rate / static_cast<double>(arguments.prompt) / 1e9,
                2 * work.multiply_adds * rate / 1e9, 100 * median(shares), best,
                100 * 2 * work.multiply_adds * best / (meter.best().*work.peak));
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
    std::vector<double> rates, shares;
    for (int64_t round = 0; round <= arguments.rounds; ++round) {
      Stopwatch stopwatch(meter);
      for (int64_t i = 0; i < arguments.generate; ++i) engine.step(outputs);
      const double seconds = stopwatch.stop();
      if (round == 0) continue;
      rates.push_back(static_cast<double>(arguments.generate * arguments.batch) / seconds);
      shares.push_back(bytes_per_token * rates.back() / stopwatch.limits().read_bytes_per_s);
    }
    while (engine.has_work()) engine.step(outputs);
    outputs.clear();
    const double rate = median(rates), best = *std::max_element(rates.begin(), rates.end());
    std::printf("| tg%ld%s | %ld | %.2f | %.3f | %.1f | %.1f | %.1f %% | %.2f | %.1f %% |\n", arguments.generate,
                depth ? str_cat(" @ d", depth).c_str() : "", arguments.batch, rate, work.bytes / 1e9,
                bytes_per_token * rate / 1e9, 2 * work.multiply_adds * rate / 1e9, 100 * median(shares), best,
                100 * bytes_per_token * best / meter.best().read_bytes_per_s);
    std::fflush(stdout);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "longcat-bench: %s\n", error.what());
  return 1;
}
