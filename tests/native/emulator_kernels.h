// Small kernels over simt.h, each sound or broken in one way, for the tests of the emulator.
#pragma once

#include "cuda/kernels/simt_peers.h"

namespace longcat::emulator_kernels {

using namespace simt;

// d = a b + c, of 16 x 16 by 16 x 8.
struct Product {
  static constexpr int kThreads = 32;
  static constexpr uint32_t kSharedBytes = 16 * 32 + 8 * 32;
  const bf16* a;   // [16, 16]
  const bf16* b;   // [8, 16]: by columns
  const float* c;  // [16, 8]
  float* d;        // [16, 8]

  LC_HD void operator()(uint32_t shared) const {
    const int lane = lane_idx();
    cp_async(shared + lane * 16, a + lane * 8);
    if (lane < 16) cp_async(shared + 512 + lane * 16, b + lane * 8);
    cp_async_commit();
    cp_async_wait<0>();
    sync_warp();
    uint32_t x[4], y[2];
    ldmatrix(x, shared + lane % 16 * 32 + lane / 16 * 16);
    ldmatrix(y, shared + 512 + lane % 8 * 32 + lane / 8 % 2 * 16);
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = load_global(c + (lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2);
    mma_bf16(sums, x, y[0], y[1]);
    for (int i = 0; i < 4; ++i) store_global(d + (lane / 4 + i / 2 * 8) * 8 + 2 * (lane % 4) + i % 2, sums[i]);
  }
};

// What all kernels below have: y[t] = x[t] + 1 where they are sound.
struct Base {
  static constexpr int kThreads = 128;
  static constexpr uint32_t kSharedBytes = 2048;
  const uint32_t* x;  // [num_blocks, kThreads]
  uint32_t* y;        // [num_blocks, kThreads]
  uint32_t* counter;  // [4], zeros
  bool broken;

  LC_HD int64_t at() const { return block_idx() * kThreads + thread_idx(); }
};

// A thread reads what another warp has written.
struct BlockBarrier : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx(), other = (t + 32) % kThreads;
    store_shared(shared + t * 4, 0u);
    sync_threads();
    store_shared(shared + t * 4, load_global(x + at()));
    if (!broken) sync_threads();
    store_global(y + block_idx() * kThreads + other, load_shared<uint32_t>(shared + other * 4) + 1);
  }
};

// A thread overwrites what another warp still reads: the values may well be right.
struct Overwrite : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx(), other = (t + 32) % kThreads;
    store_shared(shared + t * 4, load_global(x + at()));
    sync_threads();
    store_global(y + block_idx() * kThreads + other, load_shared<uint32_t>(shared + other * 4) + 1);
    if (!broken) sync_threads();
    store_shared(shared + t * 4, 0u);
  }
};

// Lanes of one warp; a shuffle orders nothing.
struct WarpBarrier : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx(), other = t ^ 1;
    store_shared(shared + t * 4, load_global(x + at()));
    if (broken) {
      shuffle(0u, 0);
    } else {
      sync_warp();
    }
    store_global(y + block_idx() * kThreads + other, load_shared<uint32_t>(shared + other * 4) + 1);
  }
};

// The first half of the block fills, the second half stores; the first does not wait.
struct NamedBarrier : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    for (int half = 0; half < 2; ++half) {
      const uint32_t stage = shared + half * 256;
      if (t < 64) {
        store_shared(stage + t * 4, load_global(x + block_idx() * kThreads + half * 64 + t));
        named_barrier_arrive(1 + half, kThreads);
      } else {
        if (!broken || half == 0) named_barrier_sync(1 + half, kThreads);
        store_global(y + block_idx() * kThreads + half * 64 + t - 64, load_shared<uint32_t>(stage + (t - 64) * 4) + 1);
      }
    }
  }
};

// Two groups of copies; broken: the second is read when only the first is waited for.
struct CopyGroups : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    for (int half = 0; half < 2; ++half) {
      if (t < 16) cp_async(shared + half * 256 + t * 16, x + block_idx() * kThreads + half * 64 + t * 4);
      cp_async_commit();
    }
    cp_async_wait<1>();
    if (!broken) cp_async_wait<0>();
    sync_threads();
    store_global(y + at(), load_shared<uint32_t>(shared + t * 4) + 1);
    cp_async_wait<0>();
  }
};

// A copy that its thread never waits for, and that no thread reads.
struct ForgottenCopy : Base {
  LC_HD void operator()(uint32_t shared) const {
    cp_async(shared + thread_idx() * 16, x + block_idx() * kThreads + thread_idx() / 4 * 4);
    cp_async_commit();
    if (!broken) cp_async_wait<0>();
    store_global(y + at(), load_global(x + at()) + 1);
  }
};

struct SharedBounds : Base {
  LC_HD void operator()(uint32_t shared) const {
    const uint32_t last = kSharedBytes - kThreads * 4 + thread_idx() * 4 + (broken ? 4 : 0);
    store_shared(shared + last, load_global(x + at()));
    store_global(y + at(), load_shared<uint32_t>(shared + last) + 1);
  }
};
struct GlobalBounds : Base {
  LC_HD void operator()(uint32_t) const { store_global(y + at(), load_global(x + at() + (broken ? 1 : 0)) + 1); }
};
struct InputWritten : Base {
  LC_HD void operator()(uint32_t) const {
    const uint32_t value = load_global(x + at());
    if (broken) store_global(const_cast<uint32_t*>(x) + at(), value);
    store_global(y + at(), value + 1);
  }
};
// 16 bytes from a row of 20.
struct SharedAlignment : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    const uint32_t row = broken ? 20 : 16;
    if (t < 32) cp_async(shared + t * row, x + block_idx() * kThreads + t * 4);
    cp_async_commit();
    cp_async_wait<0>();
    sync_threads();
    store_global(y + at(), load_shared<uint32_t>(shared + t / 4 * row + t % 4 * 4) + 1);
  }
};
struct GlobalAlignment : Base {
  LC_HD void operator()(uint32_t) const {
    if (thread_idx() % 4 != 0) return;
    const Word4 four = load_global(reinterpret_cast<const Word4*>(x + at() + (broken && thread_idx() == 0 ? 1 : 0)));
    for (int i = 0; i < 4; ++i) store_global(y + at() + i, four.v[i] + 1);
  }
};
struct Uninitialised : Base {
  LC_HD void operator()(uint32_t shared) const {
    if (!broken || thread_idx() > 0) store_shared(shared + thread_idx() * 4, load_global(x + at()));
    store_global(y + at(), load_shared<uint32_t>(shared + thread_idx() * 4) + 1);
  }
};

struct Deadlock : Base {
  LC_HD void operator()(uint32_t) const {
    if (!broken || warp_idx() > 0) sync_threads();
    store_global(y + at(), load_global(x + at()) + 1);
    if (broken && warp_idx() == 0) named_barrier_sync(3, kThreads);
  }
};
// Lanes of a warp at two instructions.
struct Diverged : Base {
  LC_HD void operator()(uint32_t) const {
    const uint32_t value = load_global(x + at());
    uint32_t got;
    if (broken && lane_idx() == 7) {
      got = shuffle(value, 7);
    } else {
      got = shuffle(value, lane_idx());
    }
    store_global(y + at(), got + 1);
  }
};

// Each thread stores and loads a word; broken: all lanes in one bank.
struct BankConflict : Base {
  static constexpr uint32_t kSharedBytes = kThreads * 33 * 4;
  LC_HD void operator()(uint32_t shared) const {
    const uint32_t word = shared + thread_idx() * 4 * (broken ? 32 : 33);
    store_shared(word, load_global(x + at()));
    store_global(y + at(), load_shared<uint32_t>(word) + 1);
  }
};

// A ring of two stages, filled by bulk copies of 256 bytes, half a row of x each; four rounds. Broken: a stage is
// filled again before all have read it.
struct BulkRing : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    const uint32_t full = shared + 1024, empty = full + 16;
    if (t == 0) {
      for (int stage = 0; stage < 2; ++stage) {
        mbarrier_init(full + stage * 8, 1);
        mbarrier_init(empty + stage * 8, kThreads - 32);
      }
    }
    sync_threads();
    for (int round = 0; round < 8; ++round) {
      const int stage = round % 2;
      const uint32_t parity = round / 2 % 2;
      if (t == 0) {  // the producer
        if (round >= 2 && !broken) mbarrier_wait(empty + stage * 8, parity ^ 1);
        mbarrier_arrive_expect(full + stage * 8, 256);
        bulk_copy(shared + stage * 256, x + block_idx() * kThreads + stage * 64, 256, full + stage * 8);
      } else if (t >= 32) {  // consumers
        mbarrier_wait(full + stage * 8, parity);
        if (t >= 64) {
          const uint32_t value = load_shared<uint32_t>(shared + stage * 256 + (t - 64) * 4);
          if (round >= 6) store_global(y + block_idx() * kThreads + stage * 64 + t - 64, value + 1);
        }
        mbarrier_arrive(empty + stage * 8);
      }
    }
  }
};
// Broken: reads without waiting for the barrier.
struct BulkRead : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    if (t == 0) mbarrier_init(shared + 1024, 1);
    sync_threads();
    if (t == 0) {
      mbarrier_arrive_expect(shared + 1024, 512);
      bulk_copy(shared, x + block_idx() * kThreads, 512, shared + 1024);
    }
    if (!broken || t == 0) mbarrier_wait(shared + 1024, 0);
    store_global(y + at(), load_shared<uint32_t>(shared + t * 4) + 1);
  }
};
// Broken: the barrier expects 16 bytes more than come.
struct BulkBytes : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    if (t == 0) mbarrier_init(shared + 1024, 1);
    sync_threads();
    if (t == 0) {
      mbarrier_arrive_expect(shared + 1024, broken ? 528 : 512);
      bulk_copy(shared, x + block_idx() * kThreads, 512, shared + 1024);
    }
    mbarrier_wait(shared + 1024, 0);
    store_global(y + at(), load_shared<uint32_t>(shared + t * 4) + 1);
  }
};
// A warp's cp.async arrive at an mbarrier. Broken: they arrive before they are told to, by a plain arrival.
struct CopyArrival : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int t = thread_idx();
    if (t == 0) mbarrier_init(shared + 1024, 32);
    sync_threads();
    if (t < 32) {
      cp_async(shared + t * 16, x + block_idx() * kThreads + t * 4);
      if (broken) {
        mbarrier_arrive(shared + 1024);
        cp_async_commit();
      } else {
        cp_async_arrive(shared + 1024);
      }
    }
    mbarrier_wait(shared + 1024, 0);
    store_global(y + at(), load_shared<uint32_t>(shared + t * 4) + 1);
    cp_async_wait<0>();
  }
};

// The last block to arrive finishes the work of all. Broken: a relaxed atomic, which orders nothing.
struct LastBlock : Base {
  LC_HD void operator()(uint32_t shared) const {
    store_global(y + at(), load_global(x + at()));
    sync_threads();
    if (thread_idx() == 0) {
      const uint32_t before = broken ? atomic_add_global(counter, 1u) : arrive(counter, 1u);
      store_shared(shared, before);
    }
    sync_threads();
    if (load_shared<uint32_t>(shared) != num_blocks() - 1) return;
    for (int64_t block = 0; block < num_blocks(); ++block) {
      uint32_t* const word = y + block * kThreads + thread_idx();
      store_global(word, load_global(word) + 1);
    }
  }
};
// All blocks wait for all; then each reads its neighbour's row. Broken: without the wait.
struct GridBarrier : Base {
  LC_HD void operator()(uint32_t) const {
    store_global(y + at(), load_global(x + at()) + 1);
    sync_threads();
    if (thread_idx() == 0) {
      arrive(counter, 1u);
      if (!broken) wait_at_least(counter, static_cast<uint32_t>(num_blocks()));
    }
    sync_threads();
    const int64_t next = (block_idx() + 1) % num_blocks();
    if (load_global(y + next * kThreads + thread_idx()) == 0) store_global(counter + 1, 1u);
  }
};
// A dependent launch: the grid before has written y. Broken: read before the wait.
struct Dependent : Base {
  LC_HD void operator()(uint32_t) const {
    launch_next_grid();
    if (!broken) wait_for_prior_grid();
    const uint32_t value = load_global(y + at());
    if (broken) wait_for_prior_grid();
    store_global(y + at(), value);
  }
};
// A dependent launch, of which block 0 has no work. Broken: that block ends without the wait.
struct DependentEnd : Base {
  LC_HD void operator()(uint32_t) const {
    launch_next_grid();
    if (broken && block_idx() == 0) return;
    wait_for_prior_grid();
    if (block_idx() > 0) store_global(y + at(), load_global(y + at()));
  }
};

// Broken: two threads store the same word.
struct TwoWriters : Base {
  LC_HD void operator()(uint32_t) const {
    store_global(y + at() - (broken && thread_idx() == 64 ? 1 : 0), load_global(x + at()) + 1);
    if (broken && thread_idx() == 64) store_global(y + at(), load_global(x + at()) + 1);
  }
};

// Exchanges in a warp, whose results are x + 1 where each is right; atomics in shared memory.
struct Exchanges : Base {
  LC_HD void operator()(uint32_t shared) const {
    const int lane = lane_idx();
    const uint32_t value = load_global(x + at());
    uint32_t right = 1;
    right &= shuffle(lane, 5) == 5;
    right &= shuffle_xor(lane, 3) == (lane ^ 3);
    right &= shuffle_down(lane, 4) == (lane + 4 < 32 ? lane + 4 : lane);
    right &= shuffle_up(lane, 4) == (lane >= 4 ? lane - 4 : lane);
    right &= ballot(lane % 3 == 0) == 0x49249249u;
    right &= match_any(static_cast<uint32_t>(lane % 8)) == (0x01010101u << (lane % 8));
    right &= warp_sum(static_cast<uint32_t>(lane)) == 496;
    right &= warp_max(static_cast<uint32_t>(lane)) == 31;
    right &= count_bits(0xf0fu) == 8 && lowest_bit(0x50u) == 4 && lowest_bit(0) == 32;
    if (thread_idx() == 0) store_shared(shared, 0u);
    sync_threads();
    atomic_add_shared(shared, static_cast<uint32_t>(lane));
    sync_threads();
    right &= load_shared<uint32_t>(shared) == 496 * kThreads / 32;
    store_global(y + at(), value + right);
  }
};

// Of several ranks, each with one block and a row: each reads the next rank's row. Broken: by a counter of its own GPU.
struct PeerFlag : Base {
  int rank;
  LC_HD void operator()(uint32_t) const {
    wait_for_prior_grid();
    const int64_t mine = rank * kThreads + thread_idx(), next = (rank + 1) % 3;
    store_global(y + mine, load_global(x + mine) + 1);
    sync_threads();
    if (thread_idx() == 0 && broken) {
      arrive(counter + rank, 1u);
      wait_at_least(counter + next, 1u);
    } else if (thread_idx() == 0) {
      signal_peer(counter + rank, 1u);
      wait_for_peer(counter + next, 1u, counter + 3);
    }
    sync_threads();
    if (load_global(y + next * kThreads + thread_idx()) == 0) store_global(y + mine, 0u);
  }
};
// The second grid of each rank reads what its first has written. Broken: before the wait.
struct PeerGrids : Base {
  int rank, grid;
  LC_HD void operator()(uint32_t) const {
    const int64_t mine = rank * kThreads + thread_idx();
    if (!broken || grid == 0) wait_for_prior_grid();
    store_global(y + mine, grid == 0 ? load_global(x + mine) : load_global(y + mine) + 1);
    if (broken && grid == 1) wait_for_prior_grid();
  }
};

}  // namespace longcat::emulator_kernels
