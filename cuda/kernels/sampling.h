// Sampling rows on the device: SamplingRow with its spans packed behind the rows, in one memory range.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "cuda/kernels/qualifiers.h"
#include "ops/ops.h"

namespace longcat {

// The range begins with this; the rows follow.
struct alignas(16) PackedSamplingRows {
  int32_t num_rows;  // behind them lie the choices
};

// The place of a list in the range.
struct PackedList {
  int64_t offset = 0;  // [bytes] from the start of the range, a multiple of 16
  int64_t count = 0;   // number of elements
};

struct PackedSamplingRow {
  double presence_penalty, frequency_penalty;
  uint64_t seed;
  float temperature, repetition_penalty, min_p;
  float removed_share;  // 1 - top_p
  int32_t top_k, sample_idx, logits_row, sequence, position, num_prompt_tokens;
  PackedList logit_bias;               // LogitBias
  PackedList bad_word_ends;            // int32: end index of each sequence in bad_word_ids
  PackedList bad_word_ids;             // int32
  PackedList banned_ids, allowed_ids;  // int32
  PackedList mask;                     // uint32
};

// Replaces `packed` by the head, the rows, the choices and then their lists. Allocates only to grow.
inline void pack_sampling_rows(std::vector<std::byte>& packed, std::span<const SamplingRow> rows,
                               std::span<const SamplingRow> choices = {}) {
  const PackedSamplingRows head{static_cast<int32_t>(rows.size())};
  const size_t num_packed = rows.size() + choices.size();
  packed.clear();
  packed.resize(sizeof(head) + num_packed * sizeof(PackedSamplingRow));
  std::memcpy(packed.data(), &head, sizeof(head));
  const auto append = [&](const auto& values) {
    using T = std::remove_cvref_t<decltype(values[0])>;
    packed.resize((packed.size() + 15) / 16 * 16);
    const PackedList list{static_cast<int64_t>(packed.size()), static_cast<int64_t>(values.size())};
    packed.resize(packed.size() + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(packed.data() + list.offset, values.data(), values.size() * sizeof(T));
    return list;
  };
  for (size_t i = 0; i < num_packed; ++i) {
    const SamplingRow& row = i < rows.size() ? rows[i] : choices[i - rows.size()];
    PackedSamplingRow p{.presence_penalty = row.presence_penalty,
                        .frequency_penalty = row.frequency_penalty,
                        .seed = row.seed,
                        .temperature = static_cast<float>(row.temperature),
                        .repetition_penalty = static_cast<float>(row.repetition_penalty),
                        .min_p = static_cast<float>(row.min_p),
                        .removed_share = static_cast<float>(1 - row.top_p),
                        .top_k = row.top_k,
                        .sample_idx = row.sample_idx,
                        .logits_row = row.logits_row,
                        .sequence = row.sequence,
                        .position = row.position,
                        .num_prompt_tokens = row.num_prompt_tokens,
                        .logit_bias = {},
                        .bad_word_ends = {},
                        .bad_word_ids = {},
                        .banned_ids = {},
                        .allowed_ids = {},
                        .mask = {}};
    p.logit_bias = append(row.logit_bias);
    p.banned_ids = append(row.banned_ids);
    p.allowed_ids = append(row.allowed_ids);
    p.mask = append(row.mask);
    if (!row.bad_words.empty()) {
      thread_local std::vector<int32_t> ends, ids;  // these grow once
      ends.clear();
      ids.clear();
      for (const std::vector<int32_t>& word : row.bad_words) {
        ids.insert(ids.end(), word.begin(), word.end());
        ends.push_back(static_cast<int32_t>(ids.size()));
      }
      p.bad_word_ends = append(ends);
      p.bad_word_ids = append(ids);
    }
    std::memcpy(packed.data() + sizeof(head) + i * sizeof(p), &p, sizeof(p));
  }
}

// A key with the order of the floats. -0 and 0 have the same key. Not for NaN.
LC_HD constexpr uint32_t order_key(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
LC_HD constexpr float value_of_key(uint32_t key) {
  return std::bit_cast<float>(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Fixed-point probability mass relative to the most likely id, at most 2^40. Sums are exact, so their order does not
// matter. The sum of 2^17 ids is far below 2^64.
LC_HD inline uint64_t mass_of(float exponential) { return static_cast<uint64_t>(exponential * 0x1p40f); }

}  // namespace longcat
