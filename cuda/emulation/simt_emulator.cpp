#include "cuda/emulation/simt_emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <new>

#include "base/error.h"

namespace longcat::emulation {

using simt::Access;
using simt::Place;

namespace {

constexpr int64_t kReserved = int64_t{1} << 36;  // [bytes] of addresses for buffers
constexpr int64_t kGap = 4096;                   // between them
constexpr int64_t kAlignment = 256;              // of their beginning, as cudaMalloc has it

std::string hex(uint32_t value) {
  const char* digits = "0123456789abcdef";
  std::string text = "0x";
  bool begun = false;
  for (int shift = 28; shift >= 0; shift -= 4) {
    const uint32_t digit = value >> shift & 15;
    begun |= digit > 0 || shift == 0;
    if (begun) text += digits[digit];
  }
  return text;
}

}  // namespace

SimtEmulator::SimtEmulator(const EmulatorOptions& options) : options_(options), random_(options.seed) {
  if (!options_.checks) return;
  void* addresses = ::mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (addresses == MAP_FAILED) throw std::bad_alloc();
  reserved_ = static_cast<char*>(addresses);
}

SimtEmulator::~SimtEmulator() {
  if (reserved_) ::munmap(reserved_, kReserved);
}

// --- memory ----------------------------------------------------------------------------------------------------------

void* SimtEmulator::allocate(const void* values, int64_t bytes, bool writable) {
  auto buffer = std::make_unique<Buffer>();
  buffer->bytes = bytes;
  buffer->writable = writable;
  buffer->memory.assign(static_cast<size_t>(bytes) + kAlignment, 0xff);
  const uintptr_t first = reinterpret_cast<uintptr_t>(buffer->memory.data());
  buffer->values = buffer->memory.data() + (kAlignment - first % kAlignment) % kAlignment;
  if (values && bytes > 0) std::memcpy(buffer->values, values, static_cast<size_t>(bytes));
  if (options_.checks) {
    buffer->begin = reinterpret_cast<uintptr_t>(reserved_) + static_cast<uintptr_t>(reserved_used_);
    reserved_used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment + kGap;
    LC_CHECK(reserved_used_ <= kReserved);
    if (writable) {
      Cell cell;
      cell.written = values != nullptr;
      buffer->cells.assign(static_cast<size_t>((bytes + kCell - 1) / kCell), cell);
    }
  } else {
    buffer->begin = reinterpret_cast<uintptr_t>(buffer->values);
  }
  buffers_.push_back(std::move(buffer));
  return reinterpret_cast<void*>(buffers_.back()->begin);
}

void SimtEmulator::copy_out(void* to, const void* from, int64_t bytes) const {
  const uintptr_t at = reinterpret_cast<uintptr_t>(from);
  for (const auto& buffer : buffers_)
    if (at >= buffer->begin &&
        at + static_cast<uintptr_t>(bytes) <= buffer->begin + static_cast<uintptr_t>(buffer->bytes)) {
      if (bytes > 0) std::memcpy(to, buffer->values + (at - buffer->begin), static_cast<size_t>(bytes));
      return;
    }
  throw Error("[emulator] read() of memory that no buffer has");
}

SimtEmulator::Buffer* SimtEmulator::buffer_at(const void* at, int64_t bytes, int alignment, bool writes, Place place) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(at);
  if (address % static_cast<uintptr_t>(alignment) != 0)
    findings_.add(Finding::misaligned, place, {},
                  "accesses " + std::to_string(bytes) + " bytes of global memory that are not aligned to " +
                      std::to_string(alignment));
  const auto inside = [&](const Buffer& buffer) {
    return address >= buffer.begin &&
           address + static_cast<uintptr_t>(bytes) <= buffer.begin + static_cast<uintptr_t>(buffer.bytes);
  };
  if (last_buffer_ >= buffers_.size() || !inside(*buffers_[last_buffer_])) {
    last_buffer_ = 0;
    while (last_buffer_ < buffers_.size() && !inside(*buffers_[last_buffer_])) ++last_buffer_;
  }
  if (last_buffer_ == buffers_.size()) {
    std::string nearest = "far from any buffer";
    int64_t least = kGap;  // distance [bytes]
    for (size_t i = 0; i < buffers_.size(); ++i) {
      const int64_t offset = static_cast<int64_t>(address) - static_cast<int64_t>(buffers_[i]->begin);
      const int64_t distance = std::max(-offset, offset + bytes - buffers_[i]->bytes);
      if (distance >= least) continue;
      least = distance;
      nearest = "at byte " + std::to_string(offset) + " of buffer " + std::to_string(i) + ", which has " +
                std::to_string(buffers_[i]->bytes);
    }
    findings_.add(Finding::out_of_bounds, place, {},
                  "accesses " + std::to_string(bytes) + " bytes of global memory " + nearest);
    return nullptr;
  }
  Buffer* const found = buffers_[last_buffer_].get();
  if (writes && !found->writable) {
    findings_.add(Finding::out_of_bounds, place, {}, "writes to input " + std::to_string(last_buffer_));
    return nullptr;
  }
  return found;
}

unsigned char* SimtEmulator::shared_at(uint32_t at, int64_t bytes, int alignment, Place place) {
  Block& block = own_block();
  if (at % static_cast<uint32_t>(alignment) != 0)
    findings_.add(Finding::misaligned, place, {},
                  "accesses " + std::to_string(bytes) + " bytes of shared memory at " + hex(at - kSharedBase) +
                      ", which are not aligned to " + std::to_string(alignment));
  if (at < kSharedBase || at - kSharedBase + bytes > shared_bytes_) {
    findings_.add(Finding::out_of_bounds, place, {},
                  "accesses " + std::to_string(bytes) + " bytes of shared memory at " +
                      std::to_string(int64_t{at} - kSharedBase) + " of " + std::to_string(shared_bytes_));
    return nullptr;
  }
  return block.shared.data() + (at - kSharedBase);
}

bool SimtEmulator::knows(const Thread& thread, int32_t self, const Mark& mark) const {
  if (mark.who == self || mark.who < 0) return true;
  if (mark.who == 0) return thread.known.prior;
  const size_t index = static_cast<size_t>(mark.who - 1);
  const size_t first = static_cast<size_t>(block) * static_cast<size_t>(num_entries());
  if (index >= first && index < first + static_cast<size_t>(num_entries()))
    return thread.known.block && (*thread.known.block)[index - first] >= mark.epoch;
  return thread.known.grid && (*thread.known.grid)[index] >= mark.epoch;
}

std::string SimtEmulator::name_of_thread(int32_t who) const {
  if (who <= 0) return "the grid before";
  const int64_t index = who - 1, thread_of_block = index % num_entries();
  const std::string block_name = " of block " + std::to_string(index / num_entries());
  return (thread_of_block == num_threads ? std::string("the copy engine")
                                         : "thread " + std::to_string(thread_of_block)) +
         block_name;
}

void SimtEmulator::touch(std::vector<Cell>& cells, int64_t offset, int64_t bytes, Access access, Place place,
                         const char* memory) {
  Thread& me = own();
  const int32_t self = who(own_block(), thread);
  const auto clash = [&](const char* mine, const char* theirs, const Mark& other, int64_t cell) {
    findings_.add(Finding::unordered, place, other.place,
                  std::string(mine) + " " + memory + " memory at byte " + std::to_string(cell * kCell) + " (" +
                      name_of_thread(self) + "), which " + name_of_thread(other.who) + " " + theirs + " at " +
                      text_of(other.place) + ", and nothing orders the two");
  };
  for (int64_t index = offset / kCell; index < (offset + bytes + kCell - 1) / kCell; ++index) {
    Cell& cell = cells[static_cast<size_t>(index)];
    if (cell.mbarrier)
      findings_.add(Finding::diverged, place, cell.writer.place, "touches an mbarrier as if it were data");
    if (cell.pending) {
      findings_.add(Finding::undelivered, place, cell.writer.place,
                    std::string(access == Access::read ? "reads" : "writes") + " shared memory at byte " +
                        std::to_string(index * kCell) + " that the copy of " + text_of(cell.writer.place) +
                        " may still write");
      if (access == Access::read) continue;
    }
    if (access != Access::write && !cell.written)
      findings_.add(Finding::uninitialised, place, {},
                    std::string("reads ") + memory + " memory at byte " + std::to_string(index * kCell) +
                        " that nothing has written");
    const bool both_atomic = access == Access::atomic && cell.atomic;
    if (!cell.pending && !both_atomic && !knows(me, self, cell.writer))
      clash(access == Access::read ? "reads" : "writes", "wrote", cell.writer, index);
    if (access == Access::read) {
      int kept = 0;
      for (int i = 0; i < cell.num_readers; ++i)  // a write behind this read is behind all that this thread knows of
        if (!knows(me, self, cell.readers[i])) cell.readers[kept++] = cell.readers[i];
      if (kept == Cell::kReaders) {
        cell.readers[random_() % Cell::kReaders] = {self, me.epoch, place};
      } else {
        cell.readers[kept++] = {self, me.epoch, place};
      }
      cell.num_readers = static_cast<uint8_t>(kept);
      continue;
    }
    for (int i = 0; i < cell.num_readers; ++i)
      if (!knows(me, self, cell.readers[i])) clash("writes", "read", cell.readers[i], index);
    cell.writer = {self, me.epoch, place};
    cell.num_readers = 0;
    cell.written = true;
    cell.pending = false;
    cell.atomic = access == Access::atomic;
  }
}

void* SimtEmulator::shared(uint32_t at, int bytes, Access access, Place place) {
  if (!options_.checks) return own_block().shared.data() + (at - kSharedBase);
  unsigned char* const found = shared_at(at, bytes, bytes, place);
  if (!found) return std::memset(scratch_, 0xff, static_cast<size_t>(bytes));
  touch(own_block().cells, at - kSharedBase, bytes, access, place, "shared");
  conflicts_.add(block * (num_threads / 32) + thread / 32, thread % 32, at, bytes, place);
  return found;
}

void* SimtEmulator::global(const void* at, int bytes, int alignment, Access access, Place place) {
  if (!options_.checks) return const_cast<void*>(at);
  Buffer* const buffer = buffer_at(at, bytes, alignment, access != Access::read, place);
  if (!buffer) return std::memset(scratch_, 0xff, static_cast<size_t>(bytes));
  const int64_t offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) - buffer->begin);
  if (buffer->writable) touch(buffer->cells, offset, bytes, access, place, "global");
  return buffer->values + offset;
}

// --- the order of threads --------------------------------------------------------------------------------------------

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
  if (blocks == 0) return;
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
  while (!stopped_) {
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

// --- asynchronous copies ---------------------------------------------------------------------------------------------

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
  conflicts_.add(block * (num_threads / 32) + thread / 32, thread % 32, to, 16, place);
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

// --- between blocks --------------------------------------------------------------------------------------------------

void SimtEmulator::order(const void* flag, simt::Order order, Place) {
  Thread& me = own();
  for (size_t i = 0; i < threads_.size(); ++i) {
    const Thread& other = threads_[i];
    if (other.wait == Wait::flag && other.flag == flag) wake(static_cast<int>(i));
  }
  if (!options_.checks) return;
  const size_t first = static_cast<size_t>(block) * static_cast<size_t>(num_entries());
  const size_t all = static_cast<size_t>(num_blocks) * static_cast<size_t>(num_entries());
  std::shared_ptr<const Epochs>& at = flags_[flag];
  if (order != simt::Order::release && at) {
    me.known.grid = join(me.known.grid, at);
    auto own_part =
        std::make_shared<Epochs>(at->begin() + static_cast<std::ptrdiff_t>(first),
                                 at->begin() + static_cast<std::ptrdiff_t>(first + static_cast<size_t>(num_entries())));
    me.known.block = join(me.known.block, own_part);
    me.known.prior |= flags_prior_[flag];
  }
  if (order == simt::Order::acquire) return;
  auto released = std::make_shared<Epochs>(all);
  if (me.known.grid) *released = *me.known.grid;
  for (size_t i = 0; me.known.block && i < me.known.block->size(); ++i)
    (*released)[first + i] = std::max((*released)[first + i], (*me.known.block)[i]);
  (*released)[first + static_cast<size_t>(thread)] = me.epoch++;
  at = join(at, released);
  flags_prior_[flag] |= me.known.prior;
}

void SimtEmulator::wait_at_least(const uint32_t* flag, uint32_t value, Place place) {
  const auto found = [&] {
    if (!options_.checks) return *flag;
    const Buffer* const buffer = buffer_at(flag, 4, 4, false, place);
    if (!buffer) stop();
    uint32_t word;
    std::memcpy(&word, buffer->values + (reinterpret_cast<uintptr_t>(flag) - buffer->begin), 4);
    return word;
  };
  while (found() < value) {
    own().flag = flag;
    own().value = value;
    pause(Wait::flag, place);
  }
  order(flag, simt::Order::acquire, place);
}

void SimtEmulator::wait_for_prior_grid(Place) { own().known.prior = true; }

}  // namespace longcat::emulation
