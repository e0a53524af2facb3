// Next-token selection, in the order of transformers' generate().
#include "cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/row_kernels.h"
#include "ops/philox.h"

namespace longcat {

namespace {

constexpr float kRemoved = -std::numeric_limits<float>::infinity();

// Repetition penalty, once per id that occurs: l < 0 ? l * penalty : l / penalty. Then for ids of the output only: l -
// presence - frequency * count.
void penalise_repeats(float* logits, int64_t vocab, const SamplingRow& row, cpu::History history) {
  const bool repetition = row.repetition_penalty != 1;
  if (!repetition && row.presence_penalty == 0 && row.frequency_penalty == 0) return;
  thread_local std::vector<char> seen;
  thread_local std::vector<int32_t> count;
  seen.assign(static_cast<size_t>(vocab), 0);
  count.assign(static_cast<size_t>(vocab), 0);
  const float penalty = static_cast<float>(row.repetition_penalty);
  for (int64_t position = 0; position <= row.position; ++position) {
    const int32_t id = history[position];
    if (id < 0 || id >= vocab) continue;
    if (position >= row.num_prompt_tokens) ++count[id];
    if (seen[id]) continue;
    seen[id] = 1;
    if (repetition) logits[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
  }
  for (int64_t id = 0; id < vocab; ++id)
    if (count[id] > 0) logits[id] -= static_cast<float>(row.presence_penalty + row.frequency_penalty * count[id]);
}

// Whether the history ends with all ids of `word` but the last.
bool completes(const std::vector<int32_t>& word, const SamplingRow& row, cpu::History history) {
  const int64_t prefix = static_cast<int64_t>(word.size()) - 1;
  if (prefix > row.position + 1) return false;
  for (int64_t i = 0; i < prefix; ++i)
    if (history[row.position + 1 - prefix + i] != word[static_cast<size_t>(i)]) return false;
  return true;
}

void remove_forbidden(float* logits, int64_t vocab, const SamplingRow& row, cpu::History history) {
  for (const std::vector<int32_t>& word : row.bad_words)
    if (!word.empty() && word.back() < vocab && completes(word, row, history)) logits[word.back()] = kRemoved;
  for (const int32_t id : row.banned_ids)
    if (id < vocab) logits[id] = kRemoved;
  if (!row.allowed_ids.empty()) {
    thread_local std::vector<char> allowed;
    allowed.assign(static_cast<size_t>(vocab), 0);
    for (const int32_t id : row.allowed_ids)
      if (id < vocab) allowed[id] = 1;
    for (int64_t id = 0; id < vocab; ++id)
      if (!allowed[id]) logits[id] = kRemoved;
  }
  if (!row.mask.empty())
    for (int64_t id = 0; id < vocab; ++id)
      if (!(row.mask[id / 32] >> (id % 32) & 1)) logits[id] = kRemoved;
}

// Removes logits below the k-th largest. Ties with the k-th stay.
void keep_top_k(float* logits, int64_t vocab, int64_t k) {
  if (k <= 0 || k >= vocab) return;
  thread_local std::vector<float> sorted;
  sorted.assign(logits, logits + vocab);
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const float threshold = sorted[k - 1];
  for (int64_t id = 0; id < vocab; ++id)
    if (logits[id] < threshold) logits[id] = kRemoved;
}

// Removes the least likely survivors while their cumulative probability is <= 1 - top_p. The most likely id stays.
// Among equals the higher id is removed first; in transformers the sort decides.
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

// Removes ids less likely than min_p times the most likely id.
void keep_min_p(float* logits, int64_t vocab, double min_p) {
  if (min_p <= 0) return;
  const float max = *std::max_element(logits, logits + vocab);
  float total = 0;
  for (int64_t id = 0; id < vocab; ++id) total += std::exp(logits[id] - max);
  const float limit = static_cast<float>(min_p) * (1 / total);
  for (int64_t id = 0; id < vocab; ++id)
    if (std::exp(logits[id] - max) / total < limit && logits[id] != max) logits[id] = kRemoved;
}

// The lowest id of the largest logit; -1 when a logit is NaN or +infinity, or all are removed.
int32_t argmax(const float* logits, int64_t vocab) {
  const float max = cpu::kernels<cpu::RowKernels>().largest(logits, vocab);
  if (std::isnan(max) || max == kRemoved) return -1;
  return static_cast<int32_t>(std::find(logits, logits + vocab, max) - logits);
}

// Whether the logits decide without any change, so that no copy is needed.
bool is_plain_greedy(const SamplingRow& row) {
  return row.temperature == 0 && row.repetition_penalty == 1 && row.presence_penalty == 0 &&
         row.frequency_penalty == 0 && row.logit_bias.empty() && row.bad_words.empty() && row.banned_ids.empty() &&
         row.allowed_ids.empty() && row.mask.empty();
}

// Divides by the temperature. Returns false on overflow: the temperature is so low that the result is greedy.
bool scale(float* logits, int64_t vocab, float temperature) {
  for (int64_t id = 0; id < vocab; ++id)
    if (logits[id] != kRemoved && !std::isfinite(logits[id] / temperature)) return false;
  for (int64_t id = 0; id < vocab; ++id)
    if (logits[id] != kRemoved) logits[id] /= temperature;
  return true;
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

}  // namespace

namespace cpu {

int32_t process_logits(float* logits, int64_t vocab, const SamplingRow& row, History history) {
  for (const auto& [token_id, bias] : row.logit_bias)
    if (token_id < vocab) logits[token_id] += bias;
  penalise_repeats(logits, vocab, row, history);
  remove_forbidden(logits, vocab, row, history);
  const int32_t most_likely = argmax(logits, vocab);
  if (most_likely < 0) return -1;
  if (row.temperature == 0 || !scale(logits, vocab, static_cast<float>(row.temperature))) {
    std::fill_n(logits, vocab, kRemoved);
    logits[most_likely] = 0;
    return most_likely;
  }
  keep_top_k(logits, vocab, row.top_k);
  keep_top_p(logits, vocab, row.top_p);
  keep_min_p(logits, vocab, row.min_p);
  return most_likely;
}

}  // namespace cpu

void CpuOps::sample(Tensor token_ids, Tensor logits, Tensor lane, Tensor block_tables, Tensor choice) {
  const int64_t vocab = logits.size(1);
  const int64_t num_rows = choice.empty() ? static_cast<int64_t>(sampling_rows_.size()) : choice.size(0);
  LC_CHECK(num_rows <= token_ids.size(0), num_rows, " rows");
  pool_.parallel_for(num_rows, 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<float> scores;  // grows once
    for (int64_t i = begin; i < end; ++i) {
      const int64_t which = choice.empty() ? i : choice.data<int32_t>()[i];
      if (which < 0) continue;
      const SamplingRow& row = (choice.empty() ? sampling_rows_ : sampling_choices_)[static_cast<size_t>(which)];
      if (is_plain_greedy(row)) {
        token_ids.data<int32_t>()[i] = argmax(logits.row<float>(row.logits_row), vocab);
        continue;
      }
      scores.assign(logits.row<float>(row.logits_row), logits.row<float>(row.logits_row) + vocab);
      const int32_t most_likely = cpu::process_logits(scores.data(), vocab, row,
                                                      {lane.data<int32_t>(), block_tables.row<int32_t>(row.sequence)});
      const bool greedy = most_likely < 0 || row.temperature == 0;
      token_ids.data<int32_t>()[i] = greedy ? most_likely : draw(scores.data(), vocab, row);
    }
  });
}

void CpuOps::token_logprobs(Tensor logprobs, Tensor ids, Tensor ranks, Tensor logits, Tensor token_ids) {
  const int64_t vocab = logits.size(1), top = ids.size(1) - 1;
  pool_.parallel_for(logits.size(0), 1, [&](int64_t begin, int64_t end) {
    thread_local std::vector<int32_t> best;
    for (int64_t i = begin; i < end; ++i) {
      const float* row = logits.row<float>(i);
      const int32_t chosen = token_ids.data<int32_t>()[i];
      const float max = *std::max_element(row, row + vocab);
      double total = 0;
      for (int64_t id = 0; id < vocab; ++id) total += std::exp(static_cast<double>(row[id]) - max);
      const auto logprob = [&](int32_t id) { return static_cast<float>(row[id] - max - std::log(total)); };
      const auto known = [&](int32_t id) { return std::isnan(row[id]) ? kRemoved : row[id]; };  // NaN has no order
      const auto likelier = [&](int32_t a, int32_t b) { return known(a) != known(b) ? known(a) > known(b) : a < b; };

      ids.row<int32_t>(i)[0] = chosen;
      logprobs.row<float>(i)[0] = logprob(chosen);
      ranks.data<int32_t>()[i] =
          1 + static_cast<int32_t>(std::count_if(row, row + vocab, [&](float l) { return l > row[chosen]; }));
      best.resize(static_cast<size_t>(vocab));
      for (int32_t id = 0; id < vocab; ++id) best[static_cast<size_t>(id)] = id;
      std::partial_sort(best.begin(), best.begin() + top, best.end(), likelier);
      for (int64_t k = 0; k < top; ++k) {
        ids.row<int32_t>(i)[k + 1] = best[static_cast<size_t>(k)];
        logprobs.row<float>(i)[k + 1] = logprob(best[static_cast<size_t>(k)]);
      }
    }
  });
}

}  // namespace longcat
