// The order in which the threads of a grid run.
#include "cuda/emulation/simt_emulator.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace longcat::emulation {

using simt::Place;

void SimtEmulator::thread_main(void* self) {
  SimtEmulator& emulator = *static_cast<SimtEmulator*>(self);
  emulator.entry_(emulator.own_grid().kernel, kSharedBase);
  emulator.end_thread();
}

void SimtEmulator::plan_grids(const std::vector<std::vector<Launch>>& ranks) {
  grids_.clear();
  num_ranks_ = static_cast<int>(ranks.size());
  total_blocks_ = 0;
  for (int rank = 0; rank < num_ranks_; ++rank)
    for (const Launch& launch : ranks[static_cast<size_t>(rank)]) {
      std::vector<int64_t> order(static_cast<size_t>(launch.blocks));
      std::iota(order.begin(), order.end(), 0);
      if (options_.backwards) std::reverse(order.begin(), order.end());
      if (options_.checks) std::shuffle(order.begin(), order.end(), random_);
      grids_.push_back({.rank = rank,
                        .first = total_blocks_,
                        .blocks = launch.blocks,
                        .kernel = launch.kernel,
                        .order = std::move(order),
                        .is_slow = options_.checks && num_ranks_ > 1 && random_() % 4 == 0,
                        .knows = nullptr});
      total_blocks_ += launch.blocks;
    }
}

// Fills free slots with blocks of the grids that run: of each rank the first one that has not ended.
void SimtEmulator::begin_blocks() {
  may_begin_ = false;
  std::vector<size_t> open;  // grids with blocks that have not begun
  for (size_t i = 0, rank = 0; i < grids_.size(); ++i) {
    const GridState& grid = grids_[i];
    if (static_cast<size_t>(grid.rank) < rank || grid.ended == grid.order.size()) continue;
    rank = static_cast<size_t>(grid.rank) + 1;
    if (grid.begun < grid.order.size()) open.push_back(i);
  }
  for (int slot = 0; slot < static_cast<int>(blocks_.size()) && !open.empty(); ++slot) {
    if (blocks_[static_cast<size_t>(slot)].index >= 0) continue;
    const size_t at = options_.checks && open.size() > 1 ? random_() % open.size() : 0, grid = open[at];
    begin_block(slot, grid);
    if (grids_[grid].begun == grids_[grid].order.size()) open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
  }
}

void SimtEmulator::begin_block(int slot, size_t grid_idx) {
  Block& block = blocks_[static_cast<size_t>(slot)];
  GridState& grid = grids_[grid_idx];
  const int64_t generation = block.generation + 1;
  std::vector<unsigned char> shared = std::move(block.shared);
  std::vector<Cell> cells = std::move(block.cells);
  block = Block();
  block.index = grid.first + grid.order[grid.begun++];
  block.grid = grid_idx;
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
    if (!overlaps_prior_) thread.known.grid = grid.knows;
    fibers_.start(at, thread_main, this);
  }
  for (int w = 0; w < num_threads / 32; ++w) {
    Warp& warp = warps_[static_cast<size_t>(slot * (num_threads / 32) + w)];
    warp = Warp();
    warp.ready = ~0u;
    // Some warps run only when no other can, so that they fall far behind.
    warp.priority = options_.checks && (random_() % 4 == 0 || grid.is_slow) ? 0 : 1;
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
                    "block " + std::to_string(this->block) + " ends without wait_for_prior_grid()");
    for (const Delivery& delivery : deliveries_)
      if (delivery.slot == current_ / num_threads)
        findings_.add(Finding::unfinished, delivery.copies.empty() ? Place{} : delivery.copies[0].place, {},
                      "starts a copy that is under way when the block ends");
    std::erase_if(deliveries_, [&](const Delivery& d) { return d.slot == current_ / num_threads; });
    end_block(block);
  }
  pause(Wait::done, {});
}

// The last thread of a block has ended.
void SimtEmulator::end_block(Block& ended) {
  GridState& grid = grids_[ended.grid];
  if (options_.checks && grids_.size() > 1) {
    const size_t entries = static_cast<size_t>(num_entries()), first = static_cast<size_t>(ended.index) * entries;
    if (!grid.done)
      grid.done = grid.knows ? std::make_shared<Epochs>(*grid.knows)
                             : std::make_shared<Epochs>(static_cast<size_t>(total_blocks_) * entries);
    Epochs& done = *grid.done;
    const auto add = [&](const std::shared_ptr<const Epochs>& known, size_t at) {
      for (size_t i = 0; known && i < known->size(); ++i) done[at + i] = std::max(done[at + i], (*known)[i]);
    };
    const Thread* const threads = &threads_[static_cast<size_t>(&ended - blocks_.data()) * (entries - 1)];
    for (size_t t = 0; t + 1 < entries; ++t) {
      const Known& known = threads[t].known;
      if (t == 0 || known.grid != threads[t - 1].known.grid) add(known.grid, 0);
      if (t == 0 || known.block != threads[t - 1].known.block) add(known.block, first);
      done[first + t] = std::max(done[first + t], threads[t].epoch);
    }
    done[first + entries - 1] = ended.engine_epoch;
  }
  ended.index = -1;
  may_begin_ = true;
  if (++grid.ended < grid.order.size() || ended.grid + 1 == grids_.size()) return;
  GridState& next = grids_[ended.grid + 1];
  if (next.rank == grid.rank) next.knows = grid.done;
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
  std::map<std::tuple<std::string, std::string, std::string>, std::vector<int>> waits;
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
    waits[{name_of_block(block.index), text_of(waiting.place), what}].push_back(static_cast<int>(i) % num_threads);
  }
  std::string text = "and others wait for each other:";
  Place place{};
  for (const auto& [key, threads] : waits) {
    const auto& [block, at, what] = key;
    text += " " + block + ", " + std::to_string(threads.size()) + " threads from " + std::to_string(threads.front()) +
            " on, at " + at + " wait " + what + ";";
  }
  for (const Thread& waiting : threads_)
    if (waiting.wait != Wait::done && waiting.wait != Wait::none) place = waiting.place;
  findings_.add(Finding::deadlock, place, {}, text);
}

// Whether to go on although every thread waits: for a GPU that another emulator runs.
bool SimtEmulator::waits_for_others() {
  const auto waits = [](const Thread& one) { return one.wait == Wait::peer; };
  if (!others_ || std::none_of(threads_.begin(), threads_.end(), waits)) return false;
  if (!others_()) {
    stopped_ = true;
    return true;
  }
  for (size_t i = 0; i < threads_.size(); ++i)
    if (waits(threads_[i])) wake(static_cast<int>(i));
  return true;
}

void SimtEmulator::run(int64_t blocks, int threads, int64_t shared_bytes, Entry entry, const void* kernel,
                       bool overlaps_prior) {
  if (blocks == 0 || has_stopped()) return;
  overlaps_prior_ = overlaps_prior;
  plan_grids({{{blocks, kernel}}});
  run_grids(threads, shared_bytes, entry, std::min<int64_t>(blocks, options_.resident_blocks));
}

void SimtEmulator::run_on_ranks(const std::vector<std::vector<Launch>>& ranks, int threads, int64_t shared_bytes,
                                Entry entry) {
  if (has_stopped()) return;
  overlaps_prior_ = true;
  plan_grids(ranks);
  int64_t slots = 0;
  for (const auto& grids : ranks) {
    int64_t most = 0;
    for (const Launch& grid : grids) most = std::max(most, grid.blocks);
    slots += most;
  }
  run_grids(threads, shared_bytes, entry, slots);
}

void SimtEmulator::run_grids(int threads, int64_t shared_bytes, Entry entry, int64_t slots) {
  num_threads = threads;
  shared_bytes_ = shared_bytes;
  entry_ = entry;
  stopped_ = false;
  may_begin_ = true;
  current_warp_ = -1;
  deliveries_.clear();
  flags_.clear();
  threads_.assign(static_cast<size_t>(slots * threads), Thread());
  warps_.assign(static_cast<size_t>(slots * threads / 32), Warp());
  blocks_.assign(static_cast<size_t>(slots), Block());
  fibers_.reset(static_cast<int>(slots) * threads);

  simt::Machine* const outer = simt::machine;
  simt::machine = this;
  while (!stopped_ && !has_stopped()) {
    if (may_begin_) begin_blocks();
    // Delivers asynchronous copies late: seldom before all threads wait.
    if (!deliveries_.empty() && random_() % 256 == 0) deliver(random_() % deliveries_.size());
    const int next = next_thread();
    if (next < 0) {
      if (!deliveries_.empty()) {
        deliver(random_() % deliveries_.size());
        continue;
      }
      if (waits_for_others()) continue;
      const bool live = std::any_of(blocks_.begin(), blocks_.end(), [](const Block& b) { return b.index >= 0; });
      if (live) report_deadlock();
      break;
    }
    current_ = next;
    thread = next % threads;
    const Block& running = blocks_[static_cast<size_t>(next / threads)];
    block = running.index - grids_[running.grid].first;
    num_blocks = grids_[running.grid].blocks;
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
