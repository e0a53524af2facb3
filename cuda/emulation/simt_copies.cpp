// Asynchronous copies and mbarriers: a copy lands late, at a random time before its wait ends.
#include <algorithm>

#include "cuda/emulation/simt_emulator.h"

namespace longcat::emulation {

using simt::Access;
using simt::Place;

// Writes a copy's bytes, as thread `who` in its `epoch`.
void SimtEmulator::land(Block& block, const Copy& copy, int32_t who, uint32_t epoch) {
  unsigned char* const to = block.shared.data() + (copy.to - kSharedBase);
  if (copy.from) {
    std::memcpy(to, copy.from, copy.bytes);
  } else {
    std::memset(to, 0, copy.bytes);
  }
  const int64_t first = (copy.to - kSharedBase) / kCell;
  for (int64_t i = first; i < first + copy.bytes / kCell; ++i) {
    Cell& cell = block.cells[static_cast<size_t>(i)];
    cell.pending = false;
    cell.written = true;
    cell.writer = {who, epoch, copy.place};
  }
}

void SimtEmulator::cp_async(uint32_t to, const void* from, bool valid, Place place) {
  if (!options_.checks) {
    unsigned char* const at = own_block().shared.data() + (to - kSharedBase);
    valid ? std::memcpy(at, from, 16) : std::memset(at, 0, 16);
    return;
  }
  const Buffer* const source = valid ? buffer_at(from, 16, 16, false, place) : nullptr;
  unsigned char* const at = shared_at(to, 16, 16, place);
  if (!at || (valid && !source)) return;
  const unsigned char* bytes = nullptr;
  if (source) bytes = static_cast<unsigned char*>(global(from, 16, 16, Access::read, place));
  touch(own_block().cells, to - kSharedBase, 16, Access::write, place, "shared");
  std::memset(at, 0xff, 16);
  for (int64_t i = (to - kSharedBase) / kCell; i < (to - kSharedBase + 16) / kCell; ++i)
    own_block().cells[static_cast<size_t>(i)].pending = true;
  conflicts_.add(own_block().index * (num_threads / 32) + thread / 32, thread % 32, to, 16, place);
  own().open.push_back({to, 16, bytes, place});
}

void SimtEmulator::cp_async_commit(Place) {
  if (!options_.checks) return;
  Thread& me = own();
  me.groups.push_back(std::move(me.open));
  me.open.clear();
}

void SimtEmulator::cp_async_wait(int groups_left, Place) {
  if (!options_.checks) return;
  Thread& me = own();
  while (static_cast<int>(me.groups.size()) > groups_left) {
    for (const Copy& copy : me.groups.front()) land(own_block(), copy, who(own_block(), thread), me.epoch);
    me.groups.erase(me.groups.begin());
  }
}

SimtEmulator::Mbarrier* SimtEmulator::mbarrier_at(uint32_t barrier, Place place) {
  Block& block = own_block();
  const auto found = block.mbarriers.find(barrier);
  if (found == block.mbarriers.end()) {
    findings_.add(Finding::uninitialised, place, {},
                  "uses an mbarrier at " + hex(barrier - kSharedBase) + " that is not initialised");
    stop();
  }
  if (options_.checks) {
    const Mark& maker = block.cells[static_cast<size_t>((barrier - kSharedBase) / kCell)].writer;
    if (!knows(own(), who(block, thread), maker))
      findings_.add(Finding::unordered, place, maker.place,
                    "uses an mbarrier, and nothing orders that behind its initialisation at " + text_of(maker.place));
  }
  return &found->second;
}

void SimtEmulator::mbarrier_init(uint32_t barrier, int arrivals, Place place) {
  if (options_.checks) {
    if (!shared_at(barrier, 8, 8, place)) stop();
    touch(own_block().cells, barrier - kSharedBase, 8, Access::write, place, "shared");
    for (int64_t i = 0; i < 8 / kCell; ++i)
      own_block().cells[static_cast<size_t>((barrier - kSharedBase) / kCell + i)].mbarrier = true;
  }
  Mbarrier made;
  made.arrivals = made.left = arrivals;
  own_block().mbarriers[barrier] = made;
}

// Ends the phase of an mbarrier, and wakes its waiting threads, once it lacks neither arrivals nor bytes.
void SimtEmulator::mbarrier_step(Block& block, uint32_t at) {
  Mbarrier& barrier = block.mbarriers.at(at);
  if (barrier.left > 0 || barrier.bytes != 0) return;
  if (options_.checks) {
    barrier.join.add(barrier.done);
    barrier.done = barrier.join.result(num_entries());
    barrier.join.clear();
  }
  const uint32_t parity = barrier.phase & 1;
  ++barrier.phase;
  barrier.left = barrier.arrivals;
  std::vector<int> still;
  for (const int index : barrier.waiting) {
    if (threads_[static_cast<size_t>(index)].parity != parity) {
      still.push_back(index);
      continue;
    }
    wake(index);
  }
  barrier.waiting = still;
}

void SimtEmulator::mbarrier_arrive(uint32_t at, uint32_t expected_bytes, Place place) {
  Mbarrier* const barrier = mbarrier_at(at, place);
  if (barrier->left == 0) {
    findings_.add(Finding::diverged, place, {}, "arrives at an mbarrier that has all its arrivals of the phase");
    stop();
  }
  Thread& me = own();
  if (options_.checks) barrier->join.add(me.known, thread, me.epoch++);
  barrier->bytes += expected_bytes;
  --barrier->left;
  mbarrier_step(own_block(), at);
}

void SimtEmulator::mbarrier_wait(uint32_t at, uint32_t parity, Place place) {
  Mbarrier* const barrier = mbarrier_at(at, place);
  while ((barrier->phase & 1) == (parity & 1)) {
    Thread& me = own();
    me.at = at;
    me.parity = parity & 1;
    barrier->waiting.push_back(current_);
    pause(Wait::mbarrier, place);
  }
  if (!options_.checks) return;
  Join both;
  both.add(own().known);
  both.add(barrier->done);
  own().known = both.result(num_entries());
}

void SimtEmulator::cp_async_arrive(uint32_t at, Place place) {
  Mbarrier* const barrier = mbarrier_at(at, place);
  Thread& me = own();
  if (!options_.checks) {
    --barrier->left;
    mbarrier_step(own_block(), at);
    return;
  }
  // From here on the copies are the engine's: the thread need not wait for them.
  Delivery delivery{current_ / num_threads, {}, at, true};
  for (auto& group : me.groups) {
    delivery.copies.insert(delivery.copies.end(), group.begin(), group.end());
    group.clear();
  }
  delivery.copies.insert(delivery.copies.end(), me.open.begin(), me.open.end());
  me.open.clear();
  barrier->join.add(me.known, thread, me.epoch++);
  deliveries_.push_back(std::move(delivery));
}

void SimtEmulator::bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t at, Place place) {
  Mbarrier* const barrier = mbarrier_at(at, place);
  if (bytes % 16 != 0 || bytes == 0) {
    findings_.add(Finding::misaligned, place, {}, "copies " + std::to_string(bytes) + " bytes, no multiple of 16");
    stop();
  }
  if (!options_.checks) {
    std::memcpy(own_block().shared.data() + (to - kSharedBase), from, bytes);
    barrier->bytes -= bytes;
    mbarrier_step(own_block(), at);
    return;
  }
  Buffer* const source = buffer_at(from, bytes, 16, false, place);
  unsigned char* const found = shared_at(to, bytes, 16, place);
  if (!found || !source) stop();
  const int64_t offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(from) - source->begin);
  if (source->writable) touch(source->cells, offset, bytes, Access::read, place, "global");
  touch(own_block().cells, to - kSharedBase, bytes, Access::write, place, "shared");
  std::memset(found, 0xff, bytes);
  for (int64_t i = (to - kSharedBase) / kCell; i < (to - kSharedBase + bytes) / kCell; ++i)
    own_block().cells[static_cast<size_t>(i)].pending = true;
  deliveries_.push_back({current_ / num_threads, {{to, bytes, source->values + offset, place}}, at, false});
}

void SimtEmulator::deliver(size_t index) {
  const Delivery delivery = std::move(deliveries_[index]);
  deliveries_.erase(deliveries_.begin() + static_cast<std::ptrdiff_t>(index));
  Block& block = blocks_[static_cast<size_t>(delivery.slot)];
  Mbarrier& barrier = block.mbarriers.at(delivery.barrier);
  const uint32_t epoch = block.engine_epoch++;
  for (const Copy& copy : delivery.copies) {
    land(block, copy, who(block, num_threads), epoch);
    if (!delivery.arrives) barrier.bytes -= copy.bytes;
  }
  barrier.join.add_entry(num_threads, epoch);
  if (delivery.arrives) --barrier.left;
  mbarrier_step(block, delivery.barrier);
}

}  // namespace longcat::emulation
