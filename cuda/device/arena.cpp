#include "cuda/device/arena.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "ops/backend.h"

namespace longcat {

int64_t arena_bytes(int64_t free_bytes, double memory_share, int num_communicators) {
  constexpr int64_t kCommunicatorBytes = int64_t{1} << 30, kPage = int64_t{2} << 20;
  const int64_t left = free_bytes - num_communicators * kCommunicatorBytes;
  const int64_t wanted =
      memory_share > 0 ? static_cast<int64_t>(static_cast<double>(left) * memory_share) : left - kGpuSpareBytes;
  return std::max(wanted / kPage, int64_t{1}) * kPage;
}

int64_t Arena::allocate(int64_t bytes) {
  bytes = rounded(bytes);
  for (auto range = free_.begin(); range != free_.end(); ++range) {
    const auto [offset, available] = *range;
    if (available < bytes) continue;
    free_.erase(range);
    if (available > bytes) free_[offset + bytes] = available - bytes;
    used_ += bytes;
    peak_ = std::max(peak_, used_);
    return offset;
  }
  return -1;
}

void Arena::free(int64_t offset, int64_t bytes) {
  bytes = rounded(bytes);
  used_ -= bytes;
  auto next = free_.lower_bound(offset);
  LC_CHECK(next == free_.end() || offset + bytes <= next->first, "freed twice");
  if (next != free_.end() && next->first == offset + bytes) {
    bytes += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    LC_CHECK(before->first + before->second <= offset, "freed twice");
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  free_[offset] = bytes;
}

int64_t Arena::largest_free() const {
  int64_t largest = 0;
  for (const auto& [offset, bytes] : free_) largest = std::max(largest, bytes);
  return largest;
}

}  // namespace longcat
