// Where threads wait for each other: barriers, collectives of a warp, and flags between blocks.
#include <algorithm>
#include <array>
#include <atomic>

#include "cuda/emulation/simt_emulator.h"
#include "cuda/kernels/simt_peers.h"

namespace longcat::emulation {

using simt::Access;
using simt::Place;

// --- barriers --------------------------------------------------------------------------------------------------------

void SimtEmulator::arrive(int id, int expected, bool waits, Place place) {
  Block& block = own_block();
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived > 0 && barrier.expected != expected) {
    findings_.add(Finding::diverged, place, {},
                  "expects " + std::to_string(expected) + " threads at barrier " + std::to_string(id) + ", others " +
                      std::to_string(barrier.expected));
    stop();
  }
  barrier.expected = expected;
  Thread& me = own();
  if (options_.checks) barrier.join.add(me.known, thread, me.epoch++);
  if (waits) barrier.waiting.push_back(current_);
  if (++barrier.arrived == expected) {
    const Known known = options_.checks ? barrier.join.result(num_entries()) : Known();
    for (const int index : barrier.waiting) {
      if (options_.checks) threads_[static_cast<size_t>(index)].known = known;
      wake(index);
    }
    barrier = Barrier();
    return;
  }
  if (!waits) return;
  me.at = static_cast<uint32_t>(id);
  pause(Wait::barrier, place);
}

void SimtEmulator::sync_threads(Place place) { arrive(0, num_threads, true, place); }

void SimtEmulator::named_barrier(int id, int threads, bool waits, Place place) {
  if (id < 1 || id > 15 || threads % 32 != 0 || threads > num_threads || threads <= 0) {
    findings_.add(Finding::diverged, place, {},
                  "names barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads");
    stop();
  }
  arrive(id, threads, waits, place);
}

bool SimtEmulator::meet(Collective collective, int variant, Place place) {
  Warp& warp = own_warp();
  if (warp.arrived == 0) {
    warp.collective = collective;
    warp.variant = variant;
    warp.place = place;
  } else if (warp.collective != collective || warp.variant != variant || warp.place.line != place.line) {
    findings_.add(Finding::diverged, place, warp.place,
                  "is reached by lane " + std::to_string(thread % 32) + " while others of its warp wait at " +
                      text_of(warp.place));
    stop();
  }
  if (++warp.arrived < 32) {
    pause(Wait::warp, place);
    return false;
  }
  warp.arrived = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (lane != thread % 32) wake(current_ / 32 * 32 + lane);
  return true;
}

void SimtEmulator::sync_warp(Place place) {
  if (!meet(Collective::sync, 0, place) || !options_.checks) return;
  Join all;
  const int first = current_ / 32 * 32, first_thread = thread / 32 * 32;
  for (int lane = 0; lane < 32; ++lane) {
    Thread& other = threads_[static_cast<size_t>(first + lane)];
    all.add(other.known, first_thread + lane, other.epoch++);
  }
  const Known known = all.result(num_entries());
  for (int lane = 0; lane < 32; ++lane) threads_[static_cast<size_t>(first + lane)].known = known;
}

// --- collectives of a warp -------------------------------------------------------------------------------------------

const uint32_t* SimtEmulator::exchange(uint32_t value, Place place) {
  Warp& warp = own_warp();
  warp.values[thread % 32] = value;
  const int result = warp.result;  // of this exchange: it changes when the last lane comes
  if (meet(Collective::exchange, 0, place)) {
    std::memcpy(warp.results[result], warp.values, sizeof(warp.values));
    warp.result ^= 1;
  }
  return warp.results[result];
}

void SimtEmulator::ldmatrix(uint32_t* out, int matrices, bool transposed, uint32_t row, Place place) {
  Warp& warp = own_warp();
  const int lane = thread % 32;
  const unsigned char* bytes = nullptr;
  if (lane < 8 * matrices) {
    if (options_.checks) {
      bytes = shared_at(row, 16, 16, place);
      if (bytes) touch(own_block().cells, row - kSharedBase, 16, Access::read, place, "shared");
    } else {
      bytes = own_block().shared.data() + (row - kSharedBase);
    }
  }
  warp.values[lane] = bytes ? row : 0;
  warp.outs[lane] = out;
  if (!meet(Collective::ldmatrix, 2 * matrices + transposed, place)) return;
  static constexpr unsigned char kPoison[16] = {255, 255, 255, 255, 255, 255, 255, 255,
                                                255, 255, 255, 255, 255, 255, 255, 255};
  const unsigned char* const memory = own_block().shared.data();
  if (options_.checks) {
    std::array<int64_t, 32> addresses;
    addresses.fill(-1);
    for (int l = 0; l < 8 * matrices; ++l) addresses[static_cast<size_t>(l)] = warp.values[l];
    conflicts_.add(addresses, 16, place);
  }
  for (int m = 0; m < matrices; ++m) {
    const void* rows[8];
    for (int i = 0; i < 8; ++i) {
      const uint32_t at = warp.values[8 * m + i];
      rows[i] = at ? memory + (at - kSharedBase) : kPoison;
    }
    uint32_t registers[32];
    ldmatrix_8x8(registers, rows, transposed);
    for (int l = 0; l < 32; ++l) warp.outs[l][m] = registers[l];
  }
}

void SimtEmulator::mma_bf16(float* d, const uint32_t* a, const uint32_t* b, Place place) {
  Warp& warp = own_warp();
  const int lane = thread % 32;
  warp.d[lane] = d;
  warp.a[lane] = a;
  warp.b[lane] = b;
  if (meet(Collective::mma, 0, place)) mma_m16n8k16(warp.d, warp.a, warp.b, options_.arithmetic);
}

// --- between blocks --------------------------------------------------------------------------------------------------

void SimtEmulator::order(const void* flag, simt::Order order, Place) {
  wake_waiting(flag);
  if (options_.checks) release_and_acquire(flag, own_grid().rank, order);
}

void SimtEmulator::wake_waiting(const void* flag) {
  for (size_t i = 0; i < threads_.size(); ++i) {
    const Thread& other = threads_[i];
    if ((other.wait == Wait::flag || other.wait == Wait::peer) && other.flag == flag) wake(static_cast<int>(i));
  }
}

// rank: the GPU whose threads the flag orders; -1: all.
void SimtEmulator::release_and_acquire(const void* flag, int rank, simt::Order order) {
  Thread& me = own();
  const size_t first = static_cast<size_t>(own_block().index) * static_cast<size_t>(num_entries());
  const size_t all = static_cast<size_t>(total_blocks_) * static_cast<size_t>(num_entries());
  Flag& at = flags_[{flag, rank}];
  if (order != simt::Order::release && at.known) {
    me.known.grid = join(me.known.grid, at.known);
    const auto own_part = at.known->begin() + static_cast<std::ptrdiff_t>(first);
    me.known.block = join(me.known.block, std::make_shared<Epochs>(own_part, own_part + num_entries()));
    me.known.prior |= at.prior;
  }
  if (order == simt::Order::acquire) return;
  auto released = std::make_shared<Epochs>(all);
  if (me.known.grid) *released = *me.known.grid;
  for (size_t i = 0; me.known.block && i < me.known.block->size(); ++i)
    (*released)[first + i] = std::max((*released)[first + i], (*me.known.block)[i]);
  (*released)[first + static_cast<size_t>(thread)] = me.epoch++;
  at.known = join(at.known, released);
  at.prior |= me.known.prior;
}

// What lies in a flag now. Other emulators may write to it.
uint32_t SimtEmulator::word_at(const uint32_t* flag, Place place) {
  unsigned char* word = reinterpret_cast<unsigned char*>(const_cast<uint32_t*>(flag));
  if (options_.checks) {
    const Buffer* const buffer = buffer_at(flag, 4, 4, false, place);
    if (!buffer) stop();
    word = buffer->values + (reinterpret_cast<uintptr_t>(flag) - buffer->begin);
  }
  return std::atomic_ref(*reinterpret_cast<uint32_t*>(word)).load(std::memory_order_acquire);
}

void SimtEmulator::wait_at_least(const uint32_t* flag, uint32_t value, Place place) {
  while (word_at(flag, place) < value) {
    own().flag = flag;
    own().value = value;
    pause(Wait::flag, place);
  }
  order(flag, simt::Order::acquire, place);
}

// --- between GPUs ----------------------------------------------------------------------------------------------------

void SimtEmulator::signal_peer(uint32_t* flag, uint32_t value, Place place) {
  uint32_t* const word = static_cast<uint32_t*>(global(flag, 4, 4, Access::atomic, place));
  std::atomic_ref(*word).store(value, std::memory_order_release);
  wake_waiting(flag);
  if (options_.checks) release_and_acquire(flag, -1, simt::Order::release);
}

void SimtEmulator::wait_for_peer(const uint32_t* flag, uint32_t value, const uint32_t* stop_word, Place place) {
  while (!simt::has_reached(word_at(flag, place), value) && word_at(stop_word, place) == 0) {
    own().flag = flag;
    own().value = value;
    pause(Wait::peer, place);
  }
  if (options_.checks) release_and_acquire(flag, -1, simt::Order::acquire);
}

void SimtEmulator::wait_for_prior_grid(Place) {
  Thread& me = own();
  me.known.prior = true;
  me.known.grid = join(me.known.grid, own_grid().knows);
  own_block().waited = true;
}

}  // namespace longcat::emulation
