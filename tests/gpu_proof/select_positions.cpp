// The proof of cuda/kernels/select_positions.h: lists exactly, against a sort.
#include "cuda/kernels/select_positions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SelectionBins&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::SelectionLists&, bool);

namespace longcat::emulation {

namespace {

using gpu::Selection;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// normal: of both signs. near: all in one bin. equal: zeros. ties: of three values. odd: infinite, or no number. few:
// every fiftieth is better.
enum class Scores { normal, near, equal, ties, odd, few };

struct Row {
  int32_t position;
  Scores kind = Scores::normal;
  int seed = 1;
};
struct Setup {
  std::vector<Row> rows;
  int32_t topk = 2048, init_tokens = 16, local_tokens = 1024;
  int32_t context = 0;   // 0: of the longest row
  int32_t round = 1000;  // rows of a launch
  int watched = 0;       // the row whose bits are compared
};

std::vector<float> scores_of(const Row& row, int32_t count) {
  std::vector<float> scores = random_f32(count, static_cast<uint64_t>(row.seed));
  for (int32_t i = 0; i < count; ++i) {
    float& score = scores[static_cast<size_t>(i)];
    if (row.kind == Scores::near) score = 1.5f + 0.01f * std::tanh(score);
    if (row.kind == Scores::equal) score = 0;
    if (row.kind == Scores::ties) score = std::round(std::clamp(score, -1.0f, 1.0f));
    if (row.kind == Scores::few) score = i % 50 ? 1.0f : 2.0f;
    if (row.kind == Scores::odd && i % 5 == 0) score = i % 2 ? kInfinity : i % 4 ? -kInfinity : std::nanf("");
  }
  return scores;
}

// By score, then position; NaN last.
std::vector<int32_t> expected(const Row& row, const std::vector<float>& scores, const Setup& setup) {
  const int32_t end = row.position + 1 - setup.local_tokens;
  std::vector<int32_t> chosen(static_cast<size_t>(end - setup.init_tokens));
  std::iota(chosen.begin(), chosen.end(), setup.init_tokens);
  const auto is_better = [&](int32_t a, int32_t b) {
    const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return std::isnan(y) ? !std::isnan(x) : x > y;
  };
  std::stable_sort(chosen.begin(), chosen.end(), is_better);
  chosen.resize(static_cast<size_t>(setup.topk - setup.init_tokens - setup.local_tokens));
  for (int32_t j = 0; j < setup.init_tokens; ++j) chosen.push_back(j);
  for (int32_t j = end; j <= row.position; ++j) chosen.push_back(j);
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

Outcome run(SimtEmulator& gpu, const Setup& setup) {
  const int32_t num_rows = static_cast<int32_t>(setup.rows.size());
  int32_t context = setup.context;
  for (const Row& row : setup.rows) context = std::max(context, (row.position + 64) / 64 * 64);
  const int32_t round = std::min(setup.round, num_rows), stride = setup.topk + 4;
  const bool has_free = setup.topk > setup.init_tokens + setup.local_tokens;
  std::vector<int32_t> positions;
  for (const Row& row : setup.rows) positions.push_back(row.position);
  Selection selection{.positions = written(gpu, positions),
                      .states = gpu.buffer(std::vector<gpu::SelectionState>(static_cast<size_t>(round))),
                      .bins = gpu.buffer(std::vector<uint32_t>(static_cast<size_t>(round * Selection::kBins))),
                      .marks = gpu.output<uint32_t>(int64_t{round} * context / 32),
                      .candidates = gpu.output<int32_t>(int64_t{round} * context),
                      .selected = gpu.buffer(std::vector<int32_t>(static_cast<size_t>(num_rows * stride), -1)),
                      .selected_stride = stride,
                      .context = context,
                      .blocks_per_row = has_free ? (context + Selection::kSlice - 1) / Selection::kSlice : 1,
                      .topk = setup.topk,
                      .init_tokens = setup.init_tokens,
                      .local_tokens = setup.local_tokens};
  std::vector<std::vector<int32_t>> lists;
  for (int32_t first = 0; first < num_rows; first += round) {
    const int32_t count = std::min(round, num_rows - first);
    // Where nothing may be chosen, the best scores.
    std::vector<float> scores(static_cast<size_t>(round * context), kInfinity);
    for (int32_t i = 0; i < count; ++i) {
      const Row& row = setup.rows[static_cast<size_t>(first + i)];
      const std::vector<float> all = scores_of(row, context);
      if (row.position >= setup.topk)
        std::copy(all.begin() + setup.init_tokens, all.begin() + row.position + 1 - setup.local_tokens,
                  scores.begin() + int64_t{i} * context + setup.init_tokens);
      lists.push_back(row.position < setup.topk ? std::vector<int32_t>(static_cast<size_t>(setup.topk), -1)
                                                : expected(row, all, setup));
    }
    selection.scores = written(gpu, scores);
    selection.first_row = first;
    if (has_free) gpu.launch(count * selection.blocks_per_row, gpu::SelectionBins{selection}, true);
    gpu.launch(count * selection.blocks_per_row, gpu::SelectionLists{selection}, true);
  }
  const std::vector<int32_t> found = gpu.read(selection.selected, int64_t{num_rows} * stride);
  double errors = 0;
  for (int32_t i = 0; i < num_rows; ++i)
    for (int32_t j = 0; j < stride; ++j)
      errors += found[static_cast<size_t>(i * stride + j)] !=
                (j < setup.topk ? lists[static_cast<size_t>(i)][static_cast<size_t>(j)] : -1);
  for (const gpu::SelectionState& state : gpu.read(selection.states, round))
    errors += state.arrived != 0 || state.num_candidates != 0;
  for (const uint32_t left : gpu.read(selection.bins, int64_t{round} * Selection::kBins)) errors += left != 0;
  return {errors, 0, hash_of_bytes(&found[static_cast<size_t>(setup.watched * stride)], stride * 4)};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  const auto of = [](const char* name, Setup setup, const char* watched = "") {
    // Scores that differ want bins that share banks.
    return Case{name, [setup](SimtEmulator& gpu) { return run(gpu, setup); }, watched, 1 << 20};
  };
  using enum Scores;
  return prove(
      argc, argv,
      {of("2,049 to 2,051 positions beside fewer, two launches",
          {.rows = {{2047}, {2048}, {2049}, {100}, {2050}}, .round = 3, .watched = 2}, "2,050"),
       of("2,050 positions of a longer context", {.rows = {{2049}}, .context = 12288}, "2,050"),
       of("9,000 positions", {.rows = {{8999, near}}}),
       of("4,200 equal scores",
          {.rows = {{4199, equal}, {4199, ties, 2}}, .topk = 70, .init_tokens = 2, .local_tokens = 9}),
       of("infinite scores and no numbers",
          {.rows = {{299, odd, 3}, {64, odd, 4}, {63, odd, 5}}, .topk = 64, .init_tokens = 0, .local_tokens = 1}),
       of("first positions beyond a slice",
          {.rows = {{4300, normal, 6}}, .topk = 4110, .init_tokens = 4100, .local_tokens = 0}),
       of("as many good scores as positions to choose",
          {.rows = {{199, few}}, .topk = 5, .init_tokens = 0, .local_tokens = 1}),
       of("first and last alone", {.rows = {{50}}, .topk = 30, .init_tokens = 10, .local_tokens = 20})});
}
