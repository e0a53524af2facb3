// Memory far beyond the caches, in large pages where the system has them.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

#include "base/error.h"

namespace longcat::bench {

class HugeMemory {
 public:
  // count: of floats, which are all 1.
  explicit HugeMemory(int64_t count) : bytes_(static_cast<size_t>(count) * 4) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw Error(str_cat("[bench] there are no ", bytes_, " bytes of memory to read"));
    madvise(memory, bytes_, MADV_HUGEPAGE);
    floats_ = static_cast<float*>(memory);
    std::fill_n(floats_, count, 1.0f);
  }
  ~HugeMemory() { munmap(floats_, bytes_); }
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  const float* data() const { return floats_; }

 private:
  size_t bytes_;
  float* floats_ = nullptr;
};

}  // namespace longcat::bench
