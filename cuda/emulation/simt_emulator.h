// A GPU for kernels over simt.h, on the CPU. Each thread is a fiber. A seed decides the order in which blocks, warps
// and lanes run. With `checks`, asynchronous copies arrive as late as they may, and every access is checked against
// bounds, alignment and the barriers before it. Without `checks` there is one order and no shadow memory, for models.
//
// It does not model partial masks of warps, clusters, sizes of register files and caches, and time. Nor does it model
// the memory proxies of 9.0: generic stores to the bytes of a later bulk copy.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulation/bank_conflicts.h"
#include "cuda/emulation/clocks.h"
#include "cuda/emulation/fibers.h"
#include "cuda/emulation/findings.h"
#include "cuda/emulation/tensor_core.h"
#include "cuda/kernels/simt_machine.h"

namespace longcat::emulation {

struct EmulatorOptions {
  uint64_t seed = 1;
  bool checks = true;
  Arithmetic arithmetic = Arithmetic::hopper;
  int resident_blocks = 4;
  bool backwards = false;  // without checks: the order of blocks, warps and lanes
  bool stops = false;      // at the first finding; launches after that do nothing
};

class SimtEmulator final : public simt::Machine {
 public:
  explicit SimtEmulator(const EmulatorOptions& options);
  ~SimtEmulator() override;

  // --- memory of kernels. With checks, pointers lead nowhere: only a kernel's instructions reach what is behind them.

  // Read-only in kernels.
  template <class T>
  const T* input(const std::vector<T>& values) {
    return static_cast<const T*>(allocate(values.data(), static_cast<int64_t>(values.size() * sizeof(T)), false));
  }
  // Begins with these values.
  template <class T>
  T* buffer(const std::vector<T>& values) {
    return static_cast<T*>(allocate(values.data(), static_cast<int64_t>(values.size() * sizeof(T)), true));
  }
  // Begins as NaN; to read it before it is written is a finding.
  template <class T>
  T* output(int64_t count) {
    return static_cast<T*>(allocate(nullptr, count * static_cast<int64_t>(sizeof(T)), true));
  }
  // What a kernel has left in a buffer.
  template <class T>
  std::vector<T> read(const T* buffer, int64_t count) const {
    std::vector<T> values(static_cast<size_t>(count));
    copy_out(values.data(), buffer, count * static_cast<int64_t>(sizeof(T)));
    return values;
  }

  // --- launches

  // Runs the kernel's blocks. overlaps_prior: as a programmatic dependent launch, whose threads know what earlier
  // launches wrote only behind wait_for_prior_grid().
  template <class Kernel>
  void launch(int64_t blocks, const Kernel& kernel, bool overlaps_prior = false);

  // Runs kernels of several GPUs that write to each other's memory. Those of a rank run one after the other, as
  // dependent launches. Those of different ranks run in any order, and all blocks of a rank's kernel at once.
  template <class Kernel>
  struct Grid {
    int64_t blocks;
    Kernel kernel;
  };
  template <class Kernel>
  void launch_on_ranks(const std::vector<std::vector<Grid<Kernel>>>& ranks);

  // The same of kernels whose type is not known here: entry(kernel, address of the shared memory) in each thread.
  using Entry = void (*)(const void* kernel, uint32_t shared);
  struct Launch {
    int64_t blocks;
    const void* kernel;
  };
  void run(int64_t blocks, int threads, int64_t shared_bytes, Entry entry, const void* kernel,
           bool overlaps_prior = false);
  void run_on_ranks(const std::vector<std::vector<Launch>>& ranks, int threads, int64_t shared_bytes, Entry entry);

  // Called while every thread waits, and one for a GPU that another emulator runs. Returns whether to wait on; if not,
  // the launch ends. Without it that is a deadlock.
  void wait_for_others(std::function<bool()> still) { others_ = std::move(still); }

  const Findings& findings() const { return findings_; }
  void forget_findings() { findings_ = Findings(); }
  const BankConflicts& bank_conflicts() const { return conflicts_; }
  Arithmetic arithmetic() const { return options_.arithmetic; }

  // --- simt::Machine
  void sync_threads(simt::Place place) override;
  void sync_warp(simt::Place place) override;
  void named_barrier(int id, int threads, bool waits, simt::Place place) override;
  const uint32_t* exchange(uint32_t value, simt::Place place) override;
  void ldmatrix(uint32_t* out, int matrices, bool transposed, uint32_t row, simt::Place place) override;
  void mma_bf16(float* d, const uint32_t* a, const uint32_t* b, simt::Place place) override;
  void* shared(uint32_t at, int bytes, simt::Access access, simt::Place place) override;
  void* global(const void* at, int bytes, int alignment, simt::Access access, simt::Place place) override;
  void cp_async(uint32_t to, const void* from, bool valid, simt::Place place) override;
  void cp_async_commit(simt::Place place) override;
  void cp_async_wait(int groups_left, simt::Place place) override;
  void mbarrier_init(uint32_t barrier, int arrivals, simt::Place place) override;
  void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes, simt::Place place) override;
  void mbarrier_wait(uint32_t barrier, uint32_t parity, simt::Place place) override;
  void cp_async_arrive(uint32_t barrier, simt::Place place) override;
  void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, simt::Place place) override;
  void order(const void* flag, simt::Order order, simt::Place place) override;
  void wait_at_least(const uint32_t* flag, uint32_t value, simt::Place place) override;
  void signal_peer(uint32_t* flag, uint32_t value, simt::Place place) override;
  void wait_for_peer(const uint32_t* flag, uint32_t value, const uint32_t* stop, simt::Place place) override;
  void wait_for_prior_grid(simt::Place place) override;

  static constexpr uint32_t kSharedBase = 1024;  // address of a block's memory: not 0, as on a GPU

 private:
  // --- shadow of memory: who last touched each pair of bytes
  struct Mark {
    int32_t who = -1;  // 0: the grids before; then the threads of the blocks, and each block's copy engine
    uint32_t epoch = 0;
    simt::Place place{};
  };
  struct Cell {
    static constexpr int kReaders = 3;
    Mark writer;
    Mark readers[kReaders];
    uint8_t num_readers = 0;
    bool written = false, pending = false, atomic = false, mbarrier = false;
  };
  static constexpr int64_t kCell = 2;  // [bytes]

  struct Buffer {
    uintptr_t begin;  // as kernels see it
    int64_t bytes;
    bool writable;
    std::vector<unsigned char> memory;
    unsigned char* values;    // in memory, aligned
    std::vector<Cell> cells;  // of what kernels may write
  };

  // --- threads
  struct Copy {
    uint32_t to, bytes;
    const void* from;  // null: zeros
    simt::Place place;
  };
  enum class Wait { none, warp, barrier, mbarrier, flag, peer, done };
  struct Thread {
    Known known;
    uint32_t epoch = 1;
    Wait wait = Wait::none;
    simt::Place place{};  // where it waits
    uint32_t at = 0;      // the barrier it waits for
    uint32_t parity = 0;
    const uint32_t* flag = nullptr;
    uint32_t value = 0;
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;
  };
  enum class Collective { none, sync, exchange, ldmatrix, mma };
  struct Warp {
    uint32_t ready = 0;  // lanes that can run
    int arrived = 0;
    Collective collective = Collective::none;
    int variant = 0;
    simt::Place place{};
    uint32_t values[32];
    uint32_t results[2][32];
    int result = 0;
    uint32_t* outs[32];
    float* d[32];
    const uint32_t* a[32];
    const uint32_t* b[32];
    int64_t priority = 0;
  };
  struct Barrier {
    int arrived = 0, expected = 0;
    std::vector<int> waiting;
    Join join;
  };
  struct Mbarrier {
    int arrivals = 0, left = 0;
    int64_t bytes = 0;
    uint32_t phase = 0;
    std::vector<int> waiting;
    Join join;
    Known done;
  };
  struct Block {
    int64_t index = -1;  // over all grids of the run; -1: none runs in this slot
    size_t grid = 0;
    int64_t generation = 0;
    int live = 0;
    bool waited = false;  // for the rank's grid before
    uint32_t engine_epoch = 1;
    std::vector<unsigned char> shared;
    std::vector<Cell> cells;
    Barrier barriers[16];
    std::map<uint32_t, Mbarrier> mbarriers;
    int pending = 0;  // copies under way that no thread waits for itself
  };
  // A launch of this run.
  struct GridState {
    int rank;
    int64_t first;  // Block::index of its first block
    int64_t blocks;
    const void* kernel;
    std::vector<int64_t> order;  // in which its blocks begin
    size_t begun = 0, ended = 0;
    bool is_slow;                            // runs only when no other can
    std::shared_ptr<const Epochs> knows;     // what the rank's grids before have done
    std::shared_ptr<Epochs> done = nullptr;  // and this one
  };
  // Copies whose arrival an mbarrier tells.
  struct Delivery {
    int slot;
    std::vector<Copy> copies;
    uint32_t barrier;
    bool arrives;  // counts as an arrival, not as bytes
  };

  void* allocate(const void* values, int64_t bytes, bool writable);
  void copy_out(void* to, const void* from, int64_t bytes) const;

  static void thread_main(void* self);
  void run_grids(int threads, int64_t shared_bytes, Entry entry, int64_t slots);
  void plan_grids(const std::vector<std::vector<Launch>>& ranks);
  void begin_blocks();
  void begin_block(int slot, size_t grid);
  void end_thread();
  void end_block(Block& block);
  void pause(Wait wait, simt::Place place);
  [[noreturn]] void stop();
  bool has_stopped() const { return options_.stops && findings_.total() > 0; }
  void wake(int index);
  int next_thread();
  void report_deadlock();
  bool waits_for_others();
  uint32_t word_at(const uint32_t* flag, simt::Place place);
  void wake_waiting(const void* flag);
  void release_and_acquire(const void* flag, int rank, simt::Order order);

  int num_entries() const { return num_threads + 1; }
  int32_t who(const Block& block, int thread) const {
    return static_cast<int32_t>(1 + block.index * num_entries() + thread);
  }
  Block& own_block() { return blocks_[static_cast<size_t>(current_ / num_threads)]; }
  GridState& own_grid() { return grids_[own_block().grid]; }
  Warp& own_warp() { return warps_[static_cast<size_t>(current_ / 32)]; }
  Thread& own() { return threads_[static_cast<size_t>(current_)]; }
  bool knows(const Thread& thread, int32_t self, const Mark& mark);
  std::string name_of_thread(int32_t who) const;
  std::string name_of_block(int64_t index) const;

  // Whether all 32 lanes are here; else the lane has waited until they were.
  bool meet(Collective collective, int variant, simt::Place place);
  void arrive(int id, int expected, bool waits, simt::Place place);
  Mbarrier* mbarrier_at(uint32_t barrier, simt::Place place);
  void mbarrier_step(Block& block, uint32_t barrier);
  void touch(std::vector<Cell>& cells, int64_t offset, int64_t bytes, simt::Access access, simt::Place place,
             const char* memory);
  unsigned char* shared_at(uint32_t at, int64_t bytes, int alignment, simt::Place place);
  Buffer* buffer_at(const void* at, int64_t bytes, int alignment, bool writes, simt::Place place);
  void land(Block& block, const Copy& copy, int32_t who, uint32_t epoch);
  void deliver(size_t index);

  EmulatorOptions options_;
  Fibers fibers_;
  std::mt19937_64 random_;
  Findings findings_;
  BankConflicts conflicts_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  size_t last_buffer_ = 0;
  char* reserved_ = nullptr;  // addresses without memory, for buffers
  int64_t reserved_used_ = 0;

  // Of the launch that runs.
  Entry entry_ = nullptr;
  int64_t shared_bytes_ = 0;
  std::vector<GridState> grids_;  // by rank, then in their order
  int num_ranks_ = 1;
  int64_t total_blocks_ = 0;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Block> blocks_;
  std::vector<Delivery> deliveries_;
  struct Flag {
    std::shared_ptr<const Epochs> known;
    bool prior = false;
  };
  std::map<std::pair<const void*, int>, Flag> flags_;  // by the rank that it serves; -1: all
  std::function<bool()> others_;
  int current_ = 0;        // the thread that runs, over all slots
  int current_warp_ = -1;  // runs on while it can
  bool overlaps_prior_ = false, stopped_ = false;
  bool may_begin_ = false;       // a block has ended since the last begin_blocks()
  unsigned char scratch_[4096];  // stands in for memory that an access may not touch
};

template <class Kernel>
void SimtEmulator::launch_on_ranks(const std::vector<std::vector<Grid<Kernel>>>& ranks) {
  std::vector<std::vector<Launch>> launches;
  for (const auto& grids : ranks) {
    launches.emplace_back();
    for (const Grid<Kernel>& grid : grids) launches.back().push_back({grid.blocks, &grid.kernel});
  }
  run_on_ranks(launches, Kernel::kThreads, Kernel::kSharedBytes,
               [](const void* k, uint32_t shared) { (*static_cast<const Kernel*>(k))(shared); });
}

template <class Kernel>
void SimtEmulator::launch(int64_t blocks, const Kernel& kernel, bool overlaps_prior) {
  static_assert(Kernel::kThreads % 32 == 0 && Kernel::kThreads <= 1024);
  run(
      blocks, Kernel::kThreads, Kernel::kSharedBytes,
      [](const void* k, uint32_t shared) { (*static_cast<const Kernel*>(k))(shared); }, &kernel, overlaps_prior);
}

}  // namespace longcat::emulation
