// The one piece of device memory a process takes: its budget is fixed when it starts, so that nothing can fail for want
// of memory later, and allocations cost no call of the driver. First fit; freed neighbours merge.
#pragma once

#include <cstdint>
#include <map>

namespace longcat {

// How much of `free_bytes` of device memory an arena takes: `memory_share` of what is left beside NCCL's buffers, of
// which there are num_communicators; 0: all of that but 1.5 GiB for the driver (kernels, graphs, local memory).
int64_t arena_bytes(int64_t free_bytes, double memory_share, int num_communicators);

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;

  explicit Arena(int64_t bytes) : bytes_(bytes) { free_[0] = bytes; }

  // Offset of a range, or -1 where none is large enough.
  int64_t allocate(int64_t bytes);
  void free(int64_t offset, int64_t bytes);

  int64_t bytes() const { return bytes_; }
  int64_t used_bytes() const { return used_; }
  int64_t peak_bytes() const { return peak_; }
  int64_t largest_free() const;

 private:
  static int64_t rounded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

  int64_t bytes_, used_ = 0, peak_ = 0;
  std::map<int64_t, int64_t> free_;  // offset -> bytes
};

}  // namespace longcat
