// Next-token selection, in the order of transformers' generate(): penalty, temperature, top-k, top-p, draw.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/cpu_ops.h"
#include "ops/philox.h"

namespace longcat {

namespace {

constexpr float kRemoved = -std::numeric_limits<float>::infinity();

// Each id that occurs in the history, once: l < 0 ? l * penalty : l / penalty.
void penalise_repeats(float* logits, int64_t vocab, const int32_t* lane, const int32_t* block_table, int64_t length,
                      float penalty) {
  thread_local std::vector<char> seen;
  seen.assign(static_cast<size_t>(vocab), 0);
  for (int64_t s = 0; s < length; ++s) {
    const int32_t id = lane[block_table[s / kBlockSize] * kBlockSize + s % kBlockSize];
    if (id < 0 || id >= vocab || seen[id]) continue;
    seen[id] = 1;
    logits[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
  }
}

// Removes what is below the k-th largest; ties with the k-th stay.
void keep_top_k(float* logits, int64_t vocab, int64_t k) {
  if (k <= 0 || k >= vocab) return;
  thread_local std::vector<float> sorted;
  sorted.assign(logits, logits + vocab);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const float threshold = sorted[k - 1];
  for (int64_t id = 0; id < vocab; ++id)
    if (logits[id] < threshold) logits[id] = kRemoved;
}

// From the least likely survivor up, removes while the cumulative probability is <= 1 - top_p; the most likely stays.
// Among equals the higher id goes first.
void keep_top_p(float* logits, int64_t vocab, double top_p) {
  if (top_p >= 1) return;
  thread_local std::vector<int32_t> ids;
  ids.clear();
  for (int32_t id = 0; id < vocab; ++id)
    if (logits[id] != kRemoved) ids.push_back(id);
  std::sort(ids.begin(), ids.end(),
            [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] < logits[b] : a > b; });
  const float max = logits[ids.back()];
  float total = 0;
  for (const int32_t id : ids) total += std::exp(logits[id] - max);
  const float limit = static_cast<float>(1 - top_p);
  double cumulative = 0;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    cumulative += std::exp(logits[ids[i]] - max) / total;
    if (static_cast<float>(cumulative) > limit) break;
    logits[ids[i]] = kRemoved;
  }
}

// First of the largest; -1 when a NaN or +infinity is among the logits, or all are -infinity.
int32_t argmax(const float* logits, int64_t vocab) {
  int32_t best = -1;
  for (int32_t id = 0; id < vocab; ++id) {
    if (std::isnan(logits[id]) || logits[id] == -kRemoved) return -1;
    if (logits[id] != kRemoved && (best < 0 || logits[id] > logits[best])) best = id;
  }
  return best;
}

// argmax of l + Gumbel noise is a draw from softmax(l).
int32_t draw(const float* logits, int64_t vocab, const SamplingRow& row) {
  int32_t best = -1;
  double best_score = 0;
  for (int32_t id = 0; id < vocab; ++id) {
    if (logits[id] == kRemoved) continue;
    const double uniform = sampling_uniform(row.seed, static_cast<uint32_t>(id), static_cast<uint32_t>(row.position),
                                            static_cast<uint32_t>(row.sample_idx));
    const double score = logits[id] - std::log(-std::log(uniform));
    if (best < 0 || score > best_score) {
      best = id;
      best_score = score;
    }
  }
  return best;
}

int32_t sample_row(float* logits, int64_t vocab, const SamplingRow& row, const int32_t* lane,
                   const int32_t* block_table) {
  if (row.repetition_penalty != 1)
    penalise_repeats(logits, vocab, lane, block_table, row.position + 1, static_cast<float>(row.repetition_penalty));
  const int32_t most_likely = argmax(logits, vocab);
  if (most_likely < 0 || row.temperature == 0) return most_likely;
  const float temperature = static_cast<float>(row.temperature);
  // So cold that a logit overflows: the limit is greedy.
  if (const auto [low, high] = std::minmax_element(logits, logits + vocab);
      !std::isfinite(*high / temperature) || (*low != kRemoved && !std::isfinite(*low / temperature)))
    return most_likely;
  for (int64_t id = 0; id < vocab; ++id) logits[id] /= temperature;
  keep_top_k(logits, vocab, row.top_k);
  keep_top_p(logits, vocab, row.top_p);
  return draw(logits, vocab, row);
}

}  // namespace

void CpuOps::sample(Tensor token_ids, Tensor logits, std::span<const SamplingRow> rows, Tensor lane,
                    Tensor block_tables) {
  pool_.parallel_for(static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      token_ids.data<int32_t>()[i] = sample_row(logits.row<float>(i), logits.size(1), rows[i], lane.data<int32_t>(),
                                                block_tables.row<int32_t>(rows[i].sequence));
  });
}

}  // namespace longcat
