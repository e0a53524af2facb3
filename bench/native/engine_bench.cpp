// Measures the time that the engine adds to a bare forward pass. A decode step of Engine::step runs beside
// Model::forward and Model::logits on the same tokens, at the same positions, in the same cache.
//
//   engine_bench CHECKPOINT [--batch 1,8,64] [--context 100] [--steps 10] [--rounds 25] [--threads N]
//
// Rounds of engine steps and of bare passes take turns, so that a slower machine slows both. Each round has its median
// time, and the table shows the medians over the rounds. "over" and "ratio" are the medians of each round's difference
// and ratio.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "command_line.h"
#include "engine/engine.h"
#include "timing.h"

using namespace longcat;
using bench::Clock;
using bench::median;
using bench::us_since;

namespace {

struct Arguments {
  std::string checkpoint;
  std::vector<int64_t> batches{1, 8, 64};
  int64_t context = 100, steps = 10, rounds = 25;
  int threads = 0;
};

Arguments parse(int argc, char** argv) {
  bench::CommandLine line(argc, argv);
  const Arguments fallback;
  Arguments arguments{.checkpoint = line.checkpoint(),
                      .batches = line.numbers("--batch", fallback.batches),
                      .context = line.number("--context", fallback.context),
                      .steps = line.number("--steps", fallback.steps),
                      .rounds = line.number("--rounds", fallback.rounds),
                      .threads = static_cast<int>(line.number("--threads", fallback.threads))};
  line.finish();
  return arguments;
}

// Computes the newest computed token of every running sequence again: the same work as the engine's step, with the same
// bits.
class BarePass {
 public:
  BarePass(Engine& engine, int64_t batch)
      : engine_(engine),
        batch_(batch),
        buffers_(engine.ops().device(), batch, batch, (engine.max_model_len() + kBlockSize - 1) / kBlockSize),
        logits_(engine.ops().device(), batch * engine.config().vocab_size * 4),
        rows_(engine.ops().device(), batch * 4) {
    for (int64_t i = 0; i < batch; ++i) static_cast<int32_t*>(rows_.data())[i] = static_cast<int32_t>(i);
  }

  void stage() {
    std::vector<Chunk> chunks;
    engine_.scheduler().for_each([&](const Sequence& s) {
      const size_t position = static_cast<size_t>(s.num_scheduled) - 1;
      chunks.push_back({.token_ids = std::span(s.token_ids).subspan(position, 1),
                        .start = static_cast<int64_t>(position),
                        .blocks = s.blocks,
                        .generated = true});
    });
    LC_CHECK(static_cast<int64_t>(chunks.size()) == batch_);
    buffers_.stage(chunks, 0);
  }

  void forward() {
    const Tensor hidden = engine_.model().forward(buffers_.upload(0), engine_.cache());
    engine_.model().logits(logits_.tensor(DType::f32, {batch_, engine_.config().vocab_size}), hidden,
                           rows_.tensor(DType::i32, {batch_}));
  }

  // Samples greedily and without penalties, as the engine's requests do.
  void sample() {
    const std::vector<SamplingRow> rows = [&] {
      std::vector<SamplingRow> all;
      for (int32_t i = 0; i < batch_; ++i) all.push_back({.temperature = 0, .logits_row = i, .sequence = i});
      return all;
    }();
    std::vector<int32_t> ids(static_cast<size_t>(batch_));
    engine_.ops().set_sampling_rows(rows);
    engine_.ops().sample(Tensor(ids.data(), DType::i32, {batch_}),
                         logits_.tensor(DType::f32, {batch_, engine_.config().vocab_size}),
                         engine_.cache().token_lane(), buffers_.upload(0).block_tables);
  }

 private:
  Engine& engine_;
  int64_t batch_;
  BatchBuffers buffers_;
  Buffer logits_, rows_;
};

void measure(const Arguments& arguments, int64_t batch, bool overlap) {
  const int64_t num_tokens = arguments.context + arguments.steps * (arguments.rounds + 1) + 16;
  EngineOptions options{.max_model_len = num_tokens,
                        .max_num_seqs = batch,
                        .max_num_batched_tokens = std::max<int64_t>(512, batch),
                        .kv_cache_memory = int64_t{8} << 30,
                        .num_threads = arguments.threads,
                        .overlap = overlap};
  Engine engine(arguments.checkpoint, options);
  std::mt19937 random(1);
  SamplingParams params;
  params.max_tokens = num_tokens - arguments.context;
  params.temperature = 0;
  std::vector<StepOutput> outputs;
  for (int64_t i = 0; i < batch; ++i) {
    std::vector<int32_t> prompt(static_cast<size_t>(arguments.context));
    for (int32_t& id : prompt) id = static_cast<int32_t>(3 + random() % (engine.config().vocab_size - 3));
    engine.add_request(prompt, params);
  }
  const auto is_prefilling = [&] {
    bool any = false;
    engine.scheduler().for_each([&](const Sequence& s) { any = any || s.num_output_tokens() < 3; });
    return any;
  };
  while (is_prefilling()) engine.step(outputs);

  BarePass bare(engine, batch);
  const auto timed_steps = [&](int64_t count, std::vector<double>& us) {
    for (int64_t i = 0; i < count; ++i) {
      const Clock::time_point begin = Clock::now();
      engine.step(outputs);
      us.push_back(us_since(begin));
    }
    outputs.clear();
  };
  std::vector<double> warm_up, step_us, forward_us, sample_us, over_us, ratios;
  timed_steps(arguments.steps, warm_up);
  for (int64_t round = 0; round < arguments.rounds; ++round) {
    std::vector<double> first, steps, forwards, samples;
    timed_steps(1, first);  // not timed: it fills the pipeline of two steps
    timed_steps(arguments.steps - 1, steps);
    engine.between_steps([&] {
      bare.stage();
      const auto time = [&](std::vector<double>& us, auto&& work) {
        for (int64_t i = 0; i < arguments.steps; ++i) {
          const Clock::time_point begin = Clock::now();
          work();
          us.push_back(us_since(begin));
        }
      };
      bare.forward();
      time(forwards, [&] { bare.forward(); });
      time(samples, [&] { bare.sample(); });
    });
    step_us.push_back(median(steps));
    forward_us.push_back(median(forwards));
    sample_us.push_back(median(samples));
    over_us.push_back(step_us.back() - forward_us.back());
    ratios.push_back(step_us.back() / forward_us.back());
  }
  std::printf("| %ld | %s | %.1f | %.1f | %.1f | %.1f | %.4f | %.0f |\n", batch, overlap ? "yes" : "no",
              median(forward_us), median(sample_us), median(step_us), median(over_us), median(ratios),
              1e6 * static_cast<double>(batch) / median(step_us));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments = parse(argc, argv);
  std::printf("%s, context %ld, %ld rounds of %ld steps\n\n", arguments.checkpoint.c_str(), arguments.context,
              arguments.rounds, arguments.steps);
  std::printf("| batch | overlap | forward + head [us] | sample [us] | step [us] | over [us] | ratio | tokens/s |\n");
  std::printf("| --- | --- | --- | --- | --- | --- | --- | --- |\n");
  for (const int64_t batch : arguments.batches)
    for (const bool overlap : {false, true}) measure(arguments, batch, overlap);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "engine_bench: %s\n", error.what());
  return 2;
}
