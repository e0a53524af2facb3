// The positions with the best index scores. An entry stands for a position and its score, and a larger one is better.
// It holds the order of the score in its upper half, and the position, inverted, in its lower half. So of equal scores,
// the lower position is better. NaN is worse than all numbers.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

namespace longcat::cpu {

// Moves the k largest of n distinct entries to the front, in no order, and returns the least of them. 0 < k <= n.
// scratch: [n].
uint64_t keep_largest(uint64_t* entries, int64_t n, int64_t k, uint64_t* scratch);

inline int64_t position_of(uint64_t entry) { return ~static_cast<uint32_t>(entry); }

// The k best entries of those added so far, and perhaps some more.
class RunningTopK {
 public:
  static constexpr int64_t kMostAtOnce = 64;

  void begin(int64_t k);

  // Adds the positions first.. with scores [count], of kMostAtOnce at most. `floor` is an entry that the k-th best of
  // all lists is not below, shared by lists of the same token: lower entries are dropped.
  void add(const float* scores, int64_t first, int64_t count, std::atomic<uint64_t>& floor);

  std::span<const uint64_t> entries() const { return {entries_.data(), static_cast<size_t>(size_)}; }

 private:
  int64_t k_ = 0, limit_ = 0, size_ = 0;
  uint64_t least_ = 0;             // later entries must be larger
  std::vector<uint64_t> entries_;  // [limit_ + kMostAtOnce], then as many of scratch
};

}  // namespace longcat::cpu
