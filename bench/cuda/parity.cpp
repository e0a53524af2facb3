// Compares a small model on the GPU with the same model on the emulated device: all kernels at once, without Python.
// Its widths are multiples of the tensor cores' tiles.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "model/kv_cache.h"
#include "model/model.h"
#include "random_weights.h"
#include "suites.h"

namespace longcat {

namespace {

// Logits from bf16 activations differ by a few roundings of 2^-9. A token whose router scores nearly tie may go to
// another expert. So most rows must agree, and not all.
constexpr float kTolerance = 4e-2f;

constexpr int64_t kPrompt = 70, kRows = 3;  // prompt tokens, and sequences that decode

struct Run {
  std::vector<float> prompt, eager, replayed, in_place;  // logits: [kPrompt, vocab], [kRows, vocab]
  std::vector<int32_t> ngram_ids;                        // tokens of the prompt
};

Run run(Bench& b, bool fp8) {
  const int64_t vocab = b.config().vocab_size;
  ModelWeights weights = random_weights(b, fp8);
  make_tables(b, weights, Placement::host);
  Model model(b.ops(), b.config(), single_rank(b.config()), std::move(weights), kPrompt, kPrompt);
  BatchMaker batches(b, kPrompt, kRows, 2 * kPrompt);
  KvCache cache(b.device(), b.config(), batches.num_blocks(), DType::bf16);
  const Buffer logits_buffer(b.device(), kPrompt * vocab * 4), rows_buffer(b.device(), kPrompt * 4);
  std::vector<int32_t> all(static_cast<size_t>(kPrompt));
  std::iota(all.begin(), all.end(), 0);
  b.device().copy_from_host(rows_buffer.data(), all.data(), rows_buffer.bytes());
  const auto compute = [&](const ForwardBatch& batch) {
    const int64_t tokens = batch.num_tokens();
    model.logits(logits_buffer.tensor(DType::f32, {tokens, vocab}), model.forward(batch, cache),
                 rows_buffer.tensor(DType::i32, {tokens}));
  };
  const auto logits = [&](int64_t tokens) {
    std::vector<float> out(static_cast<size_t>(tokens * vocab));
    b.device().copy_to_host(out.data(), logits_buffer.data(), tokens * vocab * 4);
    return out;
  };

  Run result;
  const ForwardBatch prompt = batches.prompt(kPrompt);
  b.run([&] { compute(prompt); });
  result.prompt = logits(kPrompt);
  const Tensor ids = model.last_ngram_ids();
  result.ngram_ids.resize(static_cast<size_t>(ids.numel()));
  b.device().copy_to_host(result.ngram_ids.data(), ids.raw(), ids.num_bytes());
  const ForwardBatch decodes = batches.decodes(kRows, kPrompt + 1);
  b.run([&] { compute(decodes); });
  result.eager = logits(kRows);
  std::unique_ptr<Recording> recording;
  b.run([&] { recording = b.device().record([&] { compute(decodes); }); });
  b.run([&] { recording->launch(); });
  result.replayed = logits(kRows);
  b.set_parallel(false);
  b.run([&] { compute(decodes); });
  result.in_place = logits(kRows);
  b.set_parallel(true);
  return result;
}

// Prints a row, and returns whether most rows of logits agree.
bool compare(const char* what, const std::vector<float>& found, const std::vector<float>& expected, int64_t vocab) {
  std::vector<float> errors;
  for (size_t row = 0; row < found.size(); row += static_cast<size_t>(vocab)) {
    float scale = 0, error = 0;
    for (size_t i = row; i < row + static_cast<size_t>(vocab); ++i) {
      scale = std::max(scale, std::fabs(expected[i]));
      const float difference = std::fabs(found[i] - expected[i]);
      error = std::isfinite(difference) ? std::max(error, difference) : INFINITY;
    }
    errors.push_back(error / scale);
  }
  std::sort(errors.begin(), errors.end());
  const float median = errors[errors.size() / 2], most = errors[errors.size() * 9 / 10];
  const bool near = median < kTolerance && most < 4 * kTolerance;
  std::printf("| %s | %zu | %.1e | %.1e | %s |\n", what, errors.size(), median, errors.back(), near ? "ok" : "WRONG");
  return near;
}

}  // namespace

bool check_parity(Bench& gpu, Bench& emulated) {
  const int64_t vocab = gpu.config().vocab_size;
  bool good = true;
  std::printf(
      "| logits against the emulated device | rows | median error of a row | worst | |\n"
      "| --- | --- | --- | --- | --- |\n");
  for (const bool fp8 : {false, true}) {
    const Run found = run(gpu, fp8), expected = run(emulated, fp8);
    good &= compare(fp8 ? "prompt, fp8" : "prompt", found.prompt, expected.prompt, vocab);
    good &= compare(fp8 ? "decodes, fp8" : "decodes", found.eager, expected.eager, vocab);
    const bool ids = found.ngram_ids == expected.ngram_ids;
    const auto equals_eager = [&](const std::vector<float>& logits) {
      return std::memcmp(found.eager.data(), logits.data(), found.eager.size() * 4) == 0;
    };
    const bool replay = equals_eager(found.replayed), in_place = equals_eager(found.in_place);
    const auto word = [](bool holds) { return holds ? "yes" : "NO"; };
    std::printf("| N-gram ids equal: %s; replay = eager: %s; one stream = two: %s | | | | %s |\n", word(ids),
                word(replay), word(in_place), ids && replay && in_place ? "ok" : "WRONG");
    good &= ids && replay && in_place;
    std::fflush(stdout);
  }
  return good;
}

}  // namespace longcat
