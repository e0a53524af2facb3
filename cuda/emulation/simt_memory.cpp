// Memory of the emulated GPU: bounds, alignment, and the order of accesses.
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "base/error.h"
#include "cuda/emulation/simt_emulator.h"

namespace longcat::emulation {

using simt::Access;
using simt::Place;

namespace {

constexpr int64_t kReserved = int64_t{1} << 36;  // [bytes] of addresses for buffers
constexpr int64_t kGap = 4096;                   // between them
constexpr int64_t kAlignment = 256;              // of their beginning, as cudaMalloc has it

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

bool SimtEmulator::knows(const Thread& thread, int32_t self, const Mark& mark) {
  if (mark.who == self || mark.who < 0) return true;
  if (mark.who == 0) return thread.known.prior;
  const size_t index = static_cast<size_t>(mark.who - 1);
  const size_t first = static_cast<size_t>(own_block().index) * static_cast<size_t>(num_entries());
  if (index >= first && index < first + static_cast<size_t>(num_entries()))
    return thread.known.block && (*thread.known.block)[index - first] >= mark.epoch;
  return thread.known.grid && (*thread.known.grid)[index] >= mark.epoch;
}

std::string SimtEmulator::name_of_thread(int32_t who) const {
  if (who <= 0) return "the grid before";
  const int64_t index = who - 1, thread_of_block = index % num_entries();
  const std::string block_name = " of " + name_of_block(index / num_entries());
  return (thread_of_block == num_threads ? std::string("the copy engine")
                                         : "thread " + std::to_string(thread_of_block)) +
         block_name;
}

// Of a block over all grids of the run.
std::string SimtEmulator::name_of_block(int64_t index) const {
  size_t i = 0, grids_before = 0;
  while (index >= grids_[i].first + grids_[i].blocks) ++i;
  for (size_t j = 0; j < i; ++j) grids_before += grids_[j].rank == grids_[i].rank;
  const std::string name = "block " + std::to_string(index - grids_[i].first);
  return num_ranks_ == 1
             ? name
             : name + " of rank " + std::to_string(grids_[i].rank) + "'s grid " + std::to_string(grids_before);
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
  if (has_stopped()) stop();
  unsigned char* const found = shared_at(at, bytes, bytes, place);
  if (!found) return std::memset(scratch_, 0xff, static_cast<size_t>(bytes));
  touch(own_block().cells, at - kSharedBase, bytes, access, place, "shared");
  conflicts_.add(own_block().index * (num_threads / 32) + thread / 32, thread % 32, at, bytes, place);
  return found;
}

void* SimtEmulator::global(const void* at, int bytes, int alignment, Access access, Place place) {
  if (!options_.checks) return const_cast<void*>(at);
  if (has_stopped()) stop();
  Buffer* const buffer = buffer_at(at, bytes, alignment, access != Access::read, place);
  if (!buffer) return std::memset(scratch_, 0xff, static_cast<size_t>(bytes));
  const int64_t offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) - buffer->begin);
  if (buffer->writable) touch(buffer->cells, offset, bytes, access, place, "global");
  return buffer->values + offset;
}

}  // namespace longcat::emulation
