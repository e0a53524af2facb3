// Measures what draft tokens of the MTP layer cost and gain at a given acceptance, beside steps without draft tokens.
//
//   speculation_bench CHECKPOINT [--drafts 3] [--tokens-a-step 315] [--generate 60] [--rounds 7] [--batch 1]
//                     [--context 32] [--threads N] [--kv-cache-dtype auto] [--fixed] [--no-parts]
//
// Weights are random, so the drafts of the layer are never accepted. The bench therefore replaces the draft tokens
// between two steps: by the tokens of the text without draft tokens, which it knows, or by wrong ones. All other work
// is the engine's own. The program checks that both texts are equal.
//
// tokens-a-step: what steps of `drafts` draft tokens give on average, in hundredths; 315 is what the authors of
// LongCat-Flash report for three. It sets the probability that a draft token is right.
//
// --fixed drafts as many tokens in every step, whatever they gain. --no-parts leaves out the table of the parts of a
// step.
//
// Engines with and without draft tokens take turns. The tables show medians of the rounds: elapsed time, and the
// process's time on its cores, which other programs disturb less.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "command_line.h"
#include "engine/engine.h"
#include "timing.h"

using namespace longcat;
using bench::Clock;
using bench::median;
using bench::seconds_since;

namespace {

struct Arguments {
  std::string checkpoint, kv_cache_dtype = "auto";
  int64_t drafts = 3, tokens_a_step = 315, generate = 60, rounds = 7, batch = 1, context = 32;
  int threads = 0;
  bool fixed = false, no_parts = false;
};

Arguments parse(int argc, char** argv) {
  bench::CommandLine line(argc, argv, {"--fixed", "--no-parts"});
  const Arguments fallback;
  Arguments arguments{.checkpoint = line.checkpoint(),
                      .kv_cache_dtype = line.text("--kv-cache-dtype", fallback.kv_cache_dtype),
                      .drafts = line.number("--drafts", fallback.drafts),
                      .tokens_a_step = line.number("--tokens-a-step", fallback.tokens_a_step),
                      .generate = line.number("--generate", fallback.generate),
                      .rounds = line.number("--rounds", fallback.rounds),
                      .batch = line.number("--batch", fallback.batch),
                      .context = line.number("--context", fallback.context),
                      .threads = static_cast<int>(line.number("--threads", fallback.threads)),
                      .fixed = line.flag("--fixed"),
                      .no_parts = line.flag("--no-parts")};
  line.finish();
  return arguments;
}

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The probability p of a draft token with 1 + p + ... + p^drafts = tokens_a_step.
double acceptance_for(double tokens_a_step, int64_t drafts) {
  double low = 0, high = 1;
  for (int i = 0; i < 60; ++i) {
    const double p = (low + high) / 2;
    double tokens = 1, power = 1;
    for (int64_t d = 0; d < drafts; ++d) tokens += power *= p;
    (tokens < tokens_a_step ? low : high) = p;
  }
  return high;
}

// Whether the draft token for position `position` of text `text` is right.
bool is_right(int64_t text, int64_t position, double acceptance) {
  std::mt19937 random(static_cast<uint32_t>(7919 * text + position));
  random.discard(3);
  return static_cast<double>(random()) < acceptance * 4294967296.0;
}

struct Time {
  double elapsed = 0, cpu = 0;  // [s]
};

// An engine that generates a batch of texts.
class Run {
 public:
  Run(const Arguments& arguments, int64_t drafts)
      : arguments_(arguments),
        engine_(arguments.checkpoint, {.kv_cache_dtype = arguments.kv_cache_dtype,
                                       .max_num_seqs = arguments.batch,
                                       .kv_cache_memory = int64_t{256} << 20,
                                       .enable_prefix_caching = false,
                                       .speculation = drafts > 0 ? Speculation{.method = Speculation::Method::mtp,
                                                                               .num_tokens = drafts,
                                                                               .adaptive = !arguments.fixed}
                                                                 : Speculation{},
                                       .num_threads = arguments.threads}) {}

  Engine& engine() { return engine_; }

  // Generates the texts of a round. known: the same texts, for draft tokens; empty: none are replaced.
  std::vector<std::vector<int32_t>> generate(int64_t round, const std::vector<std::vector<int32_t>>& known,
                                             double acceptance) {
    std::vector<int64_t> ids;
    SamplingParams params;
    params.temperature = 0;
    params.max_tokens = arguments_.generate + 1;
    for (int64_t i = 0; i < arguments_.batch; ++i) {
      std::mt19937 random(static_cast<uint32_t>(round * 1000 + i));
      std::vector<int32_t> prompt(static_cast<size_t>(arguments_.context));
      for (int32_t& id : prompt)
        id = static_cast<int32_t>(3 + random() % static_cast<uint32_t>(engine_.config().vocab_size - 3));
      ids.push_back(engine_.add_request(std::move(prompt), params));
    }
    std::vector<std::vector<int32_t>> texts(ids.size());
    std::vector<StepOutput> outputs;
    Clock::time_point begin = Clock::now();
    double cpu = cpu_seconds();
    bool is_decoding = false;
    while (engine_.has_work()) {
      const int64_t first = ids.front();
      for (size_t i = 0; i < ids.size() && !known.empty(); ++i)
        if (const std::shared_ptr<Sequence> s = engine_.scheduler().find(ids[i]))
          replace_drafts(*s, i, known[i], acceptance);
      engine_.step(outputs);
      for (const StepOutput& output : outputs)
        if (output.token_id >= 0) texts[static_cast<size_t>(output.request_id - first)].push_back(output.token_id);
      outputs.clear();
      ++num_steps_;
      if (!is_decoding && std::ranges::all_of(texts, [](const auto& text) { return !text.empty(); })) {
        is_decoding = true;  // all prompts are computed
        num_steps_ = 0;
        begin = Clock::now();
        cpu = cpu_seconds();
      }
    }
    time_ = {seconds_since(begin), cpu_seconds() - cpu};
    return texts;
  }

  Time time() const { return time_; }               // of the last texts, without their prompts
  int64_t num_steps() const { return num_steps_; }  // of the last texts, without their prompts

 private:
  void replace_drafts(Sequence& s, size_t text_idx, const std::vector<int32_t>& known, double acceptance) const {
    const size_t have = static_cast<size_t>(s.num_output_tokens());
    for (size_t d = 0; d < s.drafts.size() && have + d < known.size(); ++d) {
      const int32_t token_id = known[have + d];
      const bool right = is_right(static_cast<int64_t>(text_idx), s.num_tokens() + static_cast<int64_t>(d), acceptance);
      s.drafts[d] = right ? token_id : token_id == 3 ? 4 : 3;
    }
  }

  const Arguments& arguments_;
  Engine engine_;
  Time time_;
  int64_t num_steps_ = 0;
};

// Times of the parts of a step, with `rows` rows of one sequence.
void print_parts(Engine& engine, int64_t most_rows, int64_t repeats) {
  Device& device = engine.ops().device();
  const int64_t vocab_size = engine.config().vocab_size;
  const std::vector<int32_t> blocks{1, 2};
  BatchBuffers buffers(device, 64, 64, 2);
  const Buffer logits_memory(device, most_rows * vocab_size * 4), rows_memory(device, most_rows * 4),
      ids_memory(device, most_rows * 4);
  const auto timed = [&](auto&& work) {
    std::vector<double> cpu, elapsed;
    for (int64_t i = 0; i < repeats; ++i) {
      const Clock::time_point begin = Clock::now();
      const double cpu_begin = cpu_seconds();
      work(i);
      cpu.push_back(1e3 * (cpu_seconds() - cpu_begin));
      elapsed.push_back(1e3 * seconds_since(begin));
    }
    std::printf(" %.2f, %.2f |", *std::ranges::min_element(elapsed), median(cpu));
  };
  std::printf(
      "\n| rows | forward [ms], cores' time | head | draft head | MTP layer | latents of the MTP layer | sample |\n| "
      "--- | --- | --- | --- | --- | --- | --- |\n");
  for (int64_t rows = 1; rows <= most_rows; ++rows) {
    std::vector<int32_t> token_ids(static_cast<size_t>(rows));
    Tensor hidden;
    const auto upload = [&](int64_t round) {
      for (size_t i = 0; i < token_ids.size(); ++i)
        token_ids[i] = static_cast<int32_t>(3 + (9973 * static_cast<size_t>(round) + 101 * i) % 1000);
      const Chunk chunk{.token_ids = token_ids, .start = 32, .blocks = blocks, .generated = true};
      return buffers.upload({&chunk, 1});
    };
    int32_t* const all_rows = static_cast<int32_t*>(rows_memory.data());
    for (int64_t i = 0; i < rows; ++i) all_rows[i] = static_cast<int32_t>(i);
    const Tensor row_idx = rows_memory.tensor(DType::i32, {rows});
    const Tensor logits = logits_memory.tensor(DType::f32, {rows, vocab_size});
    std::vector<SamplingRow> sampling;
    for (int32_t i = 0; i < rows; ++i) sampling.push_back({.temperature = 0, .logits_row = i, .sequence = 0});
    std::printf("| %ld |", rows);
    timed([&](int64_t round) { hidden = engine.model().forward(upload(round), engine.cache()); });
    timed([&](int64_t) { engine.model().logits(logits, hidden, row_idx); });
    timed([&](int64_t) { engine.model().draft_logits(logits, hidden, row_idx); });
    timed([&](int64_t round) { engine.model().forward_mtp(upload(round), engine.cache(), hidden); });
    timed([&](int64_t round) { engine.model().store_mtp(upload(round), engine.cache(), hidden); });
    const ForwardBatch batch = upload(0);
    timed([&](int64_t) {
      engine.ops().set_sampling_rows(sampling);
      engine.ops().sample(ids_memory.tensor(DType::i32, {rows}), logits, engine.cache().token_lane(),
                          batch.block_tables);
    });
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const Arguments arguments = parse(argc, argv);
  const double target = static_cast<double>(arguments.tokens_a_step) / 100;
  const double acceptance = acceptance_for(target, arguments.drafts);
  Run plain(arguments, 0), drafting(arguments, arguments.drafts);
  std::printf("%s, %ld texts of %ld tokens, %d threads; a draft token is right in %.1f %% of the cases\n",
              arguments.checkpoint.c_str(), arguments.batch, arguments.generate, plain.engine().num_threads(),
              100 * acceptance);
  std::vector<double> plain_ms, drafting_ms, plain_cpu_ms, drafting_cpu_ms, gains, cpu_gains, tokens_a_step;
  const double tokens = static_cast<double>(arguments.generate * arguments.batch);
  for (int64_t round = 0; round <= arguments.rounds; ++round) {
    const auto known = plain.generate(round, {}, 0);
    const auto found = drafting.generate(round, known, acceptance);
    LC_CHECK(known == found, "the texts with and without draft tokens differ in round ", round);
    if (round == 0) continue;  // it warms up
    plain_ms.push_back(1e3 * plain.time().elapsed / tokens);
    drafting_ms.push_back(1e3 * drafting.time().elapsed / tokens);
    plain_cpu_ms.push_back(1e3 * plain.time().cpu / tokens);
    drafting_cpu_ms.push_back(1e3 * drafting.time().cpu / tokens);
    gains.push_back(plain.time().elapsed / drafting.time().elapsed);
    cpu_gains.push_back(plain.time().cpu / drafting.time().cpu);
    tokens_a_step.push_back(tokens / static_cast<double>(drafting.num_steps() * arguments.batch));
  }
  std::printf("\n| | tokens a step | ms a token | cores' ms a token | faster, median of rounds | by cores' time |\n");
  std::printf("| --- | --- | --- | --- | --- | --- |\n");
  std::printf("| none | 1 | %.2f | %.2f | | |\n", median(plain_ms), median(plain_cpu_ms));
  std::printf("| mtp, %ld | %.2f | %.2f | %.2f | %.2f | %.2f |\n", arguments.drafts, median(tokens_a_step),
              median(drafting_ms), median(drafting_cpu_ms), median(gains), median(cpu_gains));
  const EngineMetrics metrics = drafting.engine().metrics();
  std::printf(
      "\nmeasured by the engine: %.1f %% of draft tokens accepted, one costs %.2f steps; at the end %ld a step\n",
      100 * metrics.draft_acceptance, metrics.draft_cost, metrics.num_drafts_now);
  if (!arguments.no_parts) print_parts(drafting.engine(), arguments.drafts + 1, 15);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "speculation_bench: %s\n", error.what());
  return 1;
}
