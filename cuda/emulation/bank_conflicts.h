// Counts how often a warp's access to shared memory takes longer because its lanes want different words of one bank.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "cuda/kernels/simt_machine.h"

namespace longcat::emulation {

// Cycles that lanes at these addresses take: words of 4 bytes lie in 32 banks. Lanes of 8 bytes go in two halves of the
// warp, lanes of 16 bytes in four quarters. An address of -1: the lane takes no part.
struct Cycles {
  int64_t least, taken;
};
Cycles bank_cycles(const std::array<int64_t, 32>& addresses, int bytes);

class BankConflicts {
 public:
  // One lane's access of its warp. The n-th accesses of the lanes at one place count as one access of the warp.
  void add(int64_t warp, int lane, uint32_t at, int bytes, simt::Place place);
  // A whole warp's access.
  void add(const std::array<int64_t, 32>& addresses, int bytes, simt::Place place);
  // Ends a launch: also counts accesses that not all lanes have made.
  void finish();

  // Cycles beyond the least, of all places.
  int64_t total() const;
  int64_t at_line(int line) const;
  std::string table() const;  // a line for each place with conflicts

 private:
  using Key = std::pair<std::string, int>;  // file, line
  struct Count {
    int64_t accesses = 0, least = 0, taken = 0;
  };
  struct Access {
    std::array<int64_t, 32> addresses;
    int lanes = 0, bytes = 0;
  };
  struct Open {
    std::array<int64_t, 32> counts{};  // accesses of each lane so far
    std::map<int64_t, Access> accesses;
    simt::Place place;
  };
  std::map<std::tuple<int64_t, const char*, int>, Open> open_;
  std::map<std::pair<const char*, int>, Count> counts_;
};

}  // namespace longcat::emulation
