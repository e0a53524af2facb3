// The faults that the emulator finds in a kernel.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "cuda/kernels/simt_machine.h"

namespace longcat::emulation {

enum class Finding {
  unordered,      // two threads touch the same bytes, one of them writes, and no barrier orders them
  undelivered,    // touches what an asynchronous copy has not been waited for
  uninitialised,  // reads shared memory or an output that nothing has written
  out_of_bounds,
  misaligned,
  diverged,  // lanes of a warp meet at different instructions; a barrier is used in two ways
  deadlock,
  unfinished,  // a copy that no thread waits for
  unwaited,    // a block of a dependent launch ends without wait_for_prior_grid()
};
constexpr int kFindingKinds = 9;
const char* name_of(Finding kind);

class Findings {
 public:
  // Says `text` once for each pair of places, and counts all.
  void add(Finding kind, simt::Place place, simt::Place other, const std::string& text);

  int64_t count(Finding kind) const { return counts_[static_cast<size_t>(kind)]; }
  int64_t total() const;
  const std::vector<std::string>& texts() const { return texts_; }  // "kind: file:line what"

 private:
  std::array<int64_t, kFindingKinds> counts_{};
  std::map<std::tuple<int, std::string_view, int, std::string_view, int>, int64_t> seen_;
  std::vector<std::string> texts_;
};

// "mla_decode.h:88"
std::string text_of(simt::Place place);

// "0x1f"
std::string hex(uint32_t value);

}  // namespace longcat::emulation
