// The proof of cuda/kernels/router_picks.h: picks and lists exactly, weights against float64.
#include "cuda/kernels/router_picks.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cuda/emulation/proof.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::RouterPicks&, bool);

namespace longcat::emulation {

namespace {

using gpu::ExpertRows;
using gpu::RouterPicks;

constexpr int kOutputs = 384, kRouted = 256, kTopk = 12, kMaxTokens = 64;
constexpr float kScaling = 6;
constexpr double kTolerance = 1e-6;  // of a token's largest weight: some roundings of f32

struct Inputs {
  std::vector<float> scores = random_f32(kMaxTokens * kOutputs, 1, 2), bias = random_f32(kOutputs, 2, 0.01f);
  Inputs() {
    // Ties. Token 2: four neighbours at a time have equal scores. Token 3: all have, so that the 16 outputs with the
    // largest bias tie, 4 in a lane, for 12 picks.
    for (int e = 0; e < kOutputs; ++e) {
      bias[static_cast<size_t>(e)] = bias[static_cast<size_t>((e - e % 4) % 96)];
      scores[static_cast<size_t>(2 * kOutputs + e)] = scores[static_cast<size_t>(2 * kOutputs + e - e % 4)];
      scores[static_cast<size_t>(3 * kOutputs + e)] = 1;
    }
    for (int e = 0; e < kOutputs; ++e)
      scores[static_cast<size_t>(kOutputs + e)] += 100;  // exp overflows without the maximum
  }
};

// Probabilities as the kernel rounds them: sums in the order of 256 threads.
std::vector<float> probabilities(const float* scores) {
  const float largest = *std::max_element(scores, scores + kOutputs);
  std::vector<float> p(kOutputs), parts(256);
  for (int e = 0; e < kOutputs; ++e) {
    p[static_cast<size_t>(e)] = expf(scores[e] - largest);
    parts[static_cast<size_t>(e % 256)] += p[static_cast<size_t>(e)];
  }
  for (size_t width = 128; width > 0; width /= 2)
    for (size_t i = 0; i < width; ++i) parts[i] += parts[i + width];
  for (float& value : p) value /= parts[0];
  return p;
}

Outcome run(SimtEmulator& gpu, const Inputs& in, int tokens, int real, int first_expert, int num_experts) {
  const auto picks = static_cast<size_t>(tokens * kTopk), experts = static_cast<size_t>(num_experts);
  const std::vector<float> scores(in.scores.begin(), in.scores.begin() + tokens * kOutputs);
  RouterPicks kernel{.scores = written(gpu, scores),
                     .bias = gpu.input(in.bias),
                     .num_real_tokens = written(gpu, std::vector<int32_t>{real}),
                     .expert_idx = gpu.output<int32_t>(tokens * kTopk),
                     .expert_weights = gpu.output<float>(tokens * kTopk),
                     .identity_weight = gpu.output<float>(tokens),
                     .permuted_rows = gpu.buffer(std::vector<int32_t>(picks, 7)),  // unwritten memory looks like -1
                     .permuted_tokens = gpu.buffer(std::vector<int32_t>(picks, -1)),
                     .expert_offsets = gpu.output<int32_t>(num_experts + 1),
                     .items = gpu.buffer(std::vector<ExpertRows>(experts)),
                     .num_items = gpu.output<int32_t>(1),
                     .masks = written(gpu, std::vector<unsigned long long>(experts)),
                     .finished = written(gpu, std::vector<uint32_t>(1)),
                     .n_routed_experts = kRouted,
                     .first_expert = first_expert,
                     .num_experts = num_experts,
                     .scaling_factor = kScaling};
  gpu.launch(tokens, kernel, true);
  gpu.launch(tokens, kernel, true);  // finds masks and counter as at first

  std::vector<int32_t> idx(picks, kRouted), rows(picks, -1), row_tokens(picks, -1), offsets(experts + 1);
  std::vector<float> weights(picks), identity(static_cast<size_t>(tokens));
  std::vector<double> exact(picks);
  std::vector<ExpertRows> items;
  for (size_t t = 0; t < static_cast<size_t>(real); ++t) {
    const float* of = &scores[t * kOutputs];
    const std::vector<float> p = probabilities(of);
    std::vector<int32_t> order(kOutputs);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return p[static_cast<size_t>(a)] + in.bias[static_cast<size_t>(a)] >
             p[static_cast<size_t>(b)] + in.bias[static_cast<size_t>(b)];
    });
    std::sort(order.begin(), order.begin() + kTopk);
    double total = 0;
    const double largest = *std::max_element(of, of + kOutputs);
    for (int e = 0; e < kOutputs; ++e) total += std::exp(of[e] - largest);
    for (size_t j = 0; j < kTopk; ++j) {
      const auto e = static_cast<size_t>(order[j]);
      idx[t * kTopk + j] = order[j];
      weights[t * kTopk + j] = p[e] * kScaling;
      exact[t * kTopk + j] = std::exp(of[e] - largest) / total * kScaling;
      if (order[j] >= kRouted) identity[t] += p[e] * kScaling;
    }
  }
  int32_t row = 0;
  for (int32_t e = 0; e < num_experts; ++e) {
    offsets[static_cast<size_t>(e)] = row;
    for (size_t i = 0; i < static_cast<size_t>(real * kTopk); ++i)
      if (idx[i] == first_expert + e && idx[i] < kRouted) {
        row_tokens[static_cast<size_t>(row)] = static_cast<int32_t>(i / kTopk);
        rows[i] = row++;
      }
    if (row > offsets[static_cast<size_t>(e)]) items.push_back({e, offsets[static_cast<size_t>(e)], row});
  }
  offsets[experts] = row;

  const std::vector<float> found = gpu.read(kernel.expert_weights, tokens * kTopk);
  const std::vector<float> found_identity = gpu.read(kernel.identity_weight, tokens);
  const std::vector<ExpertRows> found_items = gpu.read(kernel.items, static_cast<int64_t>(items.size()));
  double error = 0;
  for (size_t t = 0; t < static_cast<size_t>(real); ++t) {
    const double one = row_error(&found[t * kTopk], &exact[t * kTopk], kTopk);
    error = std::isnan(one) ? one : std::max(error, one);
    if (std::isnan(one)) return {one, kTolerance, 0};
  }
  const bool same = gpu.read(kernel.expert_idx, tokens * kTopk) == idx && found == weights &&
                    found_identity == identity && gpu.read(kernel.permuted_rows, tokens * kTopk) == rows &&
                    gpu.read(kernel.permuted_tokens, tokens * kTopk) == row_tokens &&
                    gpu.read(kernel.expert_offsets, num_experts + 1) == offsets &&
                    gpu.read(kernel.num_items, 1)[0] == static_cast<int32_t>(items.size()) &&
                    std::memcmp(found_items.data(), items.data(), items.size() * sizeof(ExpertRows)) == 0 &&
                    gpu.read(kernel.masks, num_experts) == std::vector<unsigned long long>(experts);
  if (!same) error = std::numeric_limits<double>::infinity();
  return {error, kTolerance, hash_of_bytes(found.data(), kTopk * 4)};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Inputs in;
  const auto of = [&](int tokens, int real, int first_expert = 0, int num_experts = kRouted) {
    return [=, &in](SimtEmulator& gpu) { return run(gpu, in, tokens, real, first_expert, num_experts); };
  };
  // Each lane looks up the mask and the offset of its pick's expert: conflicts depend on the picks.
  const auto one = [&](const char* name, std::function<Outcome(SimtEmulator&)> run_one) {
    return Case{name, std::move(run_one), "token 0", 250};
  };
  return prove(argc, argv,
               {one("1 token", of(1, 1)), one("4 of 5 tokens, 64 of the experts", of(5, 4, 64, 64)),
                one("17 tokens, the last 56 experts", of(17, 17, 200, 56)), one("63 of 64 tokens", of(64, 63)),
                one("64 tokens", of(64, 64))});
}
