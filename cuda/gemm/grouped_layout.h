// Places arrays with one entry per expert one after the other in the workspace.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace longcat {

class GroupedLayout {
 public:
  GroupedLayout(void* memory, int64_t bytes) : next_(static_cast<char*>(memory)), end_(next_ + bytes) {}

  template <class T>
  void place(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    LC_CHECK(next_ <= end_, "workspace too small for ", count, " experts");
  }

  void* rest() const { return next_; }
  int64_t remaining() const { return end_ - next_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* next_;
  char* end_;
};

}  // namespace longcat

// For CUTLASS calls that fail only through a bug of ours.
#define CUTLASS_CHECK(expression)                                                             \
  do {                                                                                        \
    const auto status_ = (expression);                                                        \
    LC_CHECK(status_ == cutlass::Status::kSuccess, cutlass::cutlassGetStatusString(status_)); \
  } while (0)
