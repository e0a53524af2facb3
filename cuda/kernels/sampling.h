// Sampling rows on the device: SamplingRow with its spans packed after the rows, in one memory range.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "cuda/kernels/block.h"
#include "ops/ops.h"

namespace longcat {

// The place of a list in the packed sampling parameters of a step.
struct PackedList {
  int64_t offset = 0;  // [bytes] from the start of the range, a multiple of 16
  int64_t count = 0;   // number of elements
};

struct PackedSamplingRow {
  double top_p, min_p, presence_penalty, frequency_penalty;
  uint64_t seed;
  float temperature, repetition_penalty;
  int32_t top_k, sample_idx, logits_row, sequence, position, num_prompt_tokens;
  PackedList logit_bias;               // LogitBias
  PackedList bad_word_ends;            // int32: end index of each sequence in bad_word_ids
  PackedList bad_word_ids;             // int32
  PackedList banned_ids, allowed_ids;  // int32
  PackedList mask;                     // uint32
};

// Replaces `packed` by the rows and then their lists. Allocates only to grow.
void pack_sampling_rows(std::vector<std::byte>& packed, std::span<const SamplingRow> rows);

// A key with the order of the floats. -0 and 0 have the same key. Not for NaN.
LC_HD constexpr uint32_t order_key(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Fixed-point probability mass relative to the most likely id. Sums are exact, so their order does not matter. The sum
// of 2^17 ids with at most 2^40 each is far below 2^64.
LC_HD inline uint64_t mass_of(float exponential) { return static_cast<uint64_t>(exponential * 0x1p40f); }

}  // namespace longcat
