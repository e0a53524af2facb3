// The order in which the threads of a grid run.
#include "cuda/emulation/simt_emulator.h"

#include <algorithm>
#include <bit>

namespace longcat::emulation {

using simt::Place;

void SimtEmulator::thread_main(void* self) {
  SimtEmulator& emulator = *static_cast<SimtEmulator*>(self);
  emulator.entry_(emulator.kernel_, kSharedBase);
  emulator.end_thread();
}

void SimtEmulator::begin_block(int slot, int64_t index) {
  Block& block = blocks_[static_cast<size_t>(slot)];
  const int64_t generation = block.generation + 1;
  std::vector<unsigned char> shared = std::move(block.shared);
  std::vector<Cell> cells = std::move(block.cells);
  block = Block();
  block.index = index;
  block.generation = generation;
  block.live = num_threads;
  shared.assign(static_cast<size_t>(shared_bytes_), 0xff);  // NaN, because shared memory starts undefined
  if (options_.checks) cells.assign(static_cast<size_t>((shared_bytes_ + kCell - 1) / kCell), Cell());
  block.shared = std::move(shared);
  block.cells = std::move(cells);
  for (int t = 0; t < num_threads; ++t) {
    const int at = slot * num_threads + t;
    Thread& thread = threads_[static_cast<size_t>(at)];
    thread = Thread();
    thread.known.prior = !overlaps_prior_;
    fibers_.start(at, thread_main, this);
  }
  for (int w = 0; w < num_threads / 32; ++w) {
    Warp& warp = warps_[static_cast<size_t>(slot * (num_threads / 32) + w)];
    warp = Warp();
    warp.ready = ~0u;
    // Some warps run only when no other can, so that they fall far behind.
    warp.priority = options_.checks && random_() % 4 == 0 ? 0 : 1;
  }
}

void SimtEmulator::end_thread() {
  Thread& me = own();
  const auto unfinished = [&](const std::vector<Copy>& copies) {
    for (const Copy& copy : copies)
      findings_.add(Finding::unfinished, copy.place, {}, "starts a copy that its thread never waits for");
  };
  unfinished(me.open);
  for (const auto& group : me.groups) unfinished(group);
  Block& block = own_block();
  if (--block.live == 0) {
    // The grid behind this one waits for this one alone.
    if (options_.checks && overlaps_prior_ && !block.waited)
      findings_.add(Finding::unwaited, {}, {},
                    "block " + std::to_string(block.index) + " ends without wait_for_prior_grid()");
    for (const Delivery& delivery : deliveries_)
      if (delivery.slot == current_ / num_threads)
        findings_.add(Finding::unfinished, delivery.copies.empty() ? Place{} : delivery.copies[0].place, {},
                      "starts a copy that is under way when the block ends");
    std::erase_if(deliveries_, [&](const Delivery& d) { return d.slot == current_ / num_threads; });
    block.index = -1;
  }
  pause(Wait::done, {});
}

void SimtEmulator::pause(Wait wait, Place place) {
  Thread& me = own();
  me.wait = wait;
  me.place = place;
  if (wait != Wait::none) own_warp().ready &= ~(1u << (thread % 32));
  fibers_.pause();
}

void SimtEmulator::stop() {
  stopped_ = true;
  fibers_.pause();
  std::abort();
}

void SimtEmulator::wake(int index) {
  threads_[static_cast<size_t>(index)].wait = Wait::none;
  warps_[static_cast<size_t>(index / 32)].ready |= 1u << (index % 32);
}

// The thread that runs next; -1: none can.
int SimtEmulator::next_thread() {
  const int count = static_cast<int>(warps_.size());
  const bool stays = current_warp_ >= 0 && warps_[static_cast<size_t>(current_warp_)].ready != 0 &&
                     (!options_.checks || random_() % 64 != 0);
  if (!stays) {
    current_warp_ = -1;
    const int first = options_.checks ? static_cast<int>(random_() % static_cast<uint64_t>(count)) : 0;
    for (int64_t priority = 1; priority >= 0 && current_warp_ < 0; --priority)
      for (int i = 0; i < count && current_warp_ < 0; ++i) {
        const int at = options_.backwards ? count - 1 - i : (first + i) % count;
        const Warp& warp = warps_[static_cast<size_t>(at)];
        if (warp.ready != 0 && warp.priority >= priority) current_warp_ = at;
      }
    if (current_warp_ < 0) return -1;
  }
  const uint32_t lanes = warps_[static_cast<size_t>(current_warp_)].ready;
  if (options_.checks) {
    const int turn = static_cast<int>(random_() % 32);
    return current_warp_ * 32 + (std::countr_zero(std::rotr(lanes, turn)) + turn) % 32;
  }
  return current_warp_ * 32 + (options_.backwards ? 31 - std::countl_zero(lanes) : std::countr_zero(lanes));
}

void SimtEmulator::report_deadlock() {
  // place, what -> threads
  std::map<std::tuple<int64_t, std::string, std::string>, std::vector<int>> waits;
  for (size_t i = 0; i < threads_.size(); ++i) {
    const Thread& waiting = threads_[i];
    const Block& block = blocks_[i / static_cast<size_t>(num_threads)];
    if (block.index < 0 || waiting.wait == Wait::done || waiting.wait == Wait::none) continue;
    const Warp& warp = warps_[i / 32];
    std::string what;
    switch (waiting.wait) {
      case Wait::warp:
        what = "for the other lanes of warp " + std::to_string(i % static_cast<size_t>(num_threads) / 32) +
               ", of which " + std::to_string(warp.arrived) + " are there";
        break;
      case Wait::barrier: {
        const Barrier& barrier = block.barriers[waiting.at];
        what = "at barrier " + std::to_string(waiting.at) + " with " + std::to_string(barrier.arrived) + " of " +
               std::to_string(barrier.expected) + " threads";
        break;
      }
      case Wait::mbarrier: {
        const Mbarrier& barrier = block.mbarriers.at(waiting.at);
        what = "for parity " + std::to_string(waiting.parity) + " of the mbarrier at " + hex(waiting.at - kSharedBase) +
               ", which is in phase " + std::to_string(barrier.phase) + " and misses " + std::to_string(barrier.left) +
               " arrivals and " + std::to_string(barrier.bytes) + " bytes";
        break;
      }
      default:
        what = "for a counter to reach " + std::to_string(waiting.value);
    }
    waits[{block.index, text_of(waiting.place), what}].push_back(static_cast<int>(i) % num_threads);
  }
  std::string text = "and others wait for each other:";
  Place place{};
  for (const auto& [key, threads] : waits) {
    const auto& [block, at, what] = key;
    text += " block " + std::to_string(block) + ", " + std::to_string(threads.size()) + " threads from " +
            std::to_string(threads.front()) + " on, at " + at + " wait " + what + ";";
  }
  for (const Thread& waiting : threads_)
    if (waiting.wait != Wait::done && waiting.wait != Wait::none) place = waiting.place;
  findings_.add(Finding::deadlock, place, {}, text);
}

void SimtEmulator::run(int64_t blocks, int threads, int64_t shared_bytes, Entry entry, const void* kernel,
                       bool overlaps_prior) {
  if (blocks == 0 || has_stopped()) return;
  const int slots = static_cast<int>(std::min<int64_t>(blocks, options_.resident_blocks));
  num_threads = threads;
  num_blocks = blocks;
  shared_bytes_ = shared_bytes;
  entry_ = entry;
  kernel_ = kernel;
  overlaps_prior_ = overlaps_prior;
  stopped_ = false;
  current_warp_ = -1;
  deliveries_.clear();
  flags_.clear();
  flags_prior_.clear();
  threads_.assign(static_cast<size_t>(slots * threads), Thread());
  warps_.assign(static_cast<size_t>(slots * threads / 32), Warp());
  blocks_.assign(static_cast<size_t>(slots), Block());
  fibers_.reset(slots * threads);

  std::vector<int64_t> order(static_cast<size_t>(blocks));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  if (options_.backwards) std::reverse(order.begin(), order.end());
  if (options_.checks) std::shuffle(order.begin(), order.end(), random_);
  size_t begun = 0;
  simt::Machine* const outer = simt::machine;
  simt::machine = this;
  while (!stopped_ && !has_stopped()) {
    if (begun < order.size())
      for (int slot = 0; slot < slots && begun < order.size(); ++slot)
        if (blocks_[static_cast<size_t>(slot)].index < 0) begin_block(slot, order[begun++]);
    // Delivers asynchronous copies late: seldom before all threads wait.
    if (!deliveries_.empty() && random_() % 256 == 0) deliver(random_() % deliveries_.size());
    const int next = next_thread();
    if (next < 0) {
      if (!deliveries_.empty()) {
        deliver(random_() % deliveries_.size());
        continue;
      }
      const bool live = std::any_of(blocks_.begin(), blocks_.end(), [](const Block& b) { return b.index >= 0; });
      if (live) report_deadlock();
      break;
    }
    current_ = next;
    thread = next % threads;
    block = blocks_[static_cast<size_t>(next / threads)].index;
    fibers_.resume(next);
  }
  simt::machine = outer;
  conflicts_.finish();
  // For the next launch, this one is the grid before.
  for (const auto& buffer : buffers_)
    for (Cell& cell : buffer->cells) {
      if (cell.writer.who >= 0) cell.writer.who = 0;
      if (cell.num_readers > 0) cell.readers[0].who = 0;
      cell.num_readers = std::min<uint8_t>(cell.num_readers, 1);
      cell.atomic = false;
    }
}

}  // namespace longcat::emulation
