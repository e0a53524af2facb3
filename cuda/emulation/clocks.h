// Vector clocks, which tell the accesses that are ordered from those that may race. Each thread counts its releases
// (its epoch) and has, for every other thread, the last epoch whose accesses are ordered before its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace longcat::emulation {

using Epochs = std::vector<uint32_t>;

// What one thread knows. After a barrier all its threads share one vector, so most joins compare two pointers.
struct Known {
  std::shared_ptr<const Epochs> block;  // of the threads of its block, and the block's copy engine
  std::shared_ptr<const Epochs> grid;   // of all threads of the grid; null: of none
  bool prior = false;                   // what the grid before has done
};

inline std::shared_ptr<const Epochs> join(const std::shared_ptr<const Epochs>& a,
                                          const std::shared_ptr<const Epochs>& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  auto both = std::make_shared<Epochs>(*a);
  for (size_t i = 0; i < both->size(); ++i) (*both)[i] = std::max((*both)[i], (*b)[i]);
  return both;
}

// What several threads of one block know together, as a barrier hands it on.
class Join {
 public:
  void add(const Known& known) {
    if (!(known.block == last_)) block_ = join(block_, known.block);
    last_ = known.block;
    grid_ = join(grid_, known.grid);
    prior_ |= known.prior;
  }
  // `known`, and the accesses of thread `thread` up to `epoch`.
  void add(const Known& known, int thread, uint32_t epoch) {
    add(known);
    entries_.push_back({thread, epoch});
  }
  void add_entry(int thread, uint32_t epoch) { entries_.push_back({thread, epoch}); }

  // num_entries: threads of the block, and one.
  Known result(int num_entries) const {
    auto all = block_ ? std::make_shared<Epochs>(*block_) : std::make_shared<Epochs>(num_entries);
    for (const Entry& entry : entries_) {
      uint32_t& at = (*all)[static_cast<size_t>(entry.thread)];
      at = std::max(at, entry.epoch);
    }
    return {all, grid_, prior_};
  }
  void clear() { *this = Join(); }

 private:
  struct Entry {
    int thread;
    uint32_t epoch;
  };
  std::shared_ptr<const Epochs> block_, grid_, last_;
  bool prior_ = false;
  std::vector<Entry> entries_;
};

}  // namespace longcat::emulation
