// Without branches that depend on the scores: they would be mispredicted at every second entry.
#include "cpu/attention/top_k.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace longcat::cpu {

namespace {

uint64_t entry_of(float score, int64_t position) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  const uint32_t flipped = static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) | 0x80000000u;
  const uint32_t is_number = -static_cast<uint32_t>(score == score);
  return uint64_t{(bits ^ flipped) & is_number} << 32 | ~static_cast<uint32_t>(position);
}

// The score of an entry; NaN for 0.
float score_of(uint64_t entry) {
  const uint32_t order = static_cast<uint32_t>(entry >> 32);
  const uint32_t bits = order & 0x80000000u ? order ^ 0x80000000u : ~order;
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

uint64_t median(uint64_t a, uint64_t b, uint64_t c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

// Near the median of n > 8 entries: the median of three medians.
uint64_t pivot_of(const uint64_t* entries, int64_t n) {
  const int64_t step = n / 9;
  const auto of_three = [&](int64_t i) { return median(entries[i], entries[i + 3 * step], entries[i + 6 * step]); };
  return median(of_three(0), of_three(step), of_three(2 * step));
}

}  // namespace

uint64_t keep_largest(uint64_t* entries, int64_t n, int64_t k, uint64_t* scratch) {
  constexpr int64_t kFew = 32;
  constexpr int kMostRounds = 40;  // far more than scores in any usual order need
  uint64_t* from = entries;        // the entries before it are kept
  int64_t count = n, wanted = k;
  for (int round = 0; count > wanted; ++round) {
    if (count <= kFew || round == kMostRounds) {
      std::nth_element(from, from + (wanted - 1), from + count, std::greater<>());
      break;
    }
    const uint64_t pivot = pivot_of(from, count);
    int64_t larger = 0, others = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t entry = from[i];
      from[larger] = entry;
      scratch[others] = entry;
      larger += entry > pivot;
      others += entry <= pivot;
    }
    if (larger >= wanted) {
      count = larger;
      continue;
    }
    std::memcpy(from + larger, scratch, static_cast<size_t>(others) * sizeof(uint64_t));
    from += larger;
    wanted -= larger;
    count = others;
  }
  return *std::min_element(entries, entries + k);
}

void RunningTopK::begin(int64_t k) {
  constexpr int64_t kLeastAtOnce = 256;  // a few entries are selected in vain
  k_ = k;
  limit_ = k + std::max(k, kLeastAtOnce);
  size_ = 0;
  least_ = 0;
  if (std::ssize(entries_) < 2 * (limit_ + kMostAtOnce))
    entries_.resize(static_cast<size_t>(2 * (limit_ + kMostAtOnce)));
}

void RunningTopK::add(const float* scores, int64_t first, int64_t count, std::atomic<uint64_t>& floor) {
  const uint64_t least = std::max(least_, floor.load(std::memory_order_relaxed));
  const float least_score = score_of(least);
  uint8_t candidates[kMostAtOnce];  // few of the scores: most are too low
  int64_t num_candidates = 0;
  for (int64_t i = 0; i < count; ++i) {
    candidates[num_candidates] = static_cast<uint8_t>(i);
    num_candidates += !(scores[i] < least_score);
  }
  uint64_t* out = entries_.data() + size_;
  for (int64_t c = 0; c < num_candidates; ++c) {
    *out = entry_of(scores[candidates[c]], first + candidates[c]);
    out += *out > least;
  }
  size_ = out - entries_.data();
  if (size_ < limit_) return;
  least_ = keep_largest(entries_.data(), size_, k_, entries_.data() + limit_ + kMostAtOnce);
  size_ = k_;
  for (uint64_t now = floor.load(std::memory_order_relaxed);
       now < least_ && !floor.compare_exchange_weak(now, least_, std::memory_order_relaxed);) {
  }
}

}  // namespace longcat::cpu
