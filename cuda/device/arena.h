// The single range of device memory that a process takes. Its size is fixed at the start, so later allocations cannot
// fail because other processes use the GPU, and they need no driver call. First fit; adjacent free ranges merge.
#pragma once

#include <cstdint>
#include <map>

namespace longcat {

// Size of the arena [bytes], given `free_bytes` of device memory. 1 GiB per communicator stays free for NCCL's buffers.
// Of the rest the arena takes the fraction `memory_share`; with 0, it takes all but 1.5 GiB, which the driver needs
// (kernels, graphs, local memory).
int64_t arena_bytes(int64_t free_bytes, double memory_share, int num_communicators);

class Arena {
 public:
  static constexpr int64_t kAlignment = 256;

  explicit Arena(int64_t bytes) : bytes_(bytes) { free_[0] = bytes; }

  // Returns the offset of a range, or -1 when no free range is large enough.
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
