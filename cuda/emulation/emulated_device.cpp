#include "cuda/emulation/emulated_device.h"

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "base/error.h"
#include "cuda/device/graph_sizes.h"

namespace longcat {

namespace {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

std::atomic<int64_t> kernels_before_failure{-1};  // negative: no failure
std::atomic<int64_t> num_uploads{0}, num_host_allocations{0}, num_read_backs{0}, num_waits{0}, num_thread_kernels{0};
std::atomic<bool> host_memory_is_reached{true};
std::mutex peers_mutex;
// Guarded by peers_mutex:
std::string failing_step;       // of peer memory
std::multiset<void*> mappings;  // memory of ranks, once for each other rank that has it mapped

// Whether a device fails in this step; then no other does.
bool fails_in(const char* step) {
  const std::lock_guard lock(peers_mutex);
  if (failing_step != step) return false;
  failing_step.clear();
  return true;
}

class ReplayedFunction final : public Recording {
 public:
  // num_kernels: the device's counter of kernels.
  ReplayedFunction(std::function<void()> work, const int64_t& num_kernels)
      : work_(std::move(work)), num_kernels_(num_kernels) {}
  void launch() override {
    const int64_t before = num_kernels_;
    work_();
    num_nodes_ = num_kernels_ - before;
  }
  int64_t num_nodes() const override { return num_nodes_; }  // of the last launch

 private:
  std::function<void()> work_;
  const int64_t& num_kernels_;
  int64_t num_nodes_ = 0;
};

}  // namespace

void fail_emulated_kernels(int64_t num_kernels) { kernels_before_failure = num_kernels; }

EmulatedCalls emulated_calls() {
  return {.uploads = num_uploads,
          .host_allocations = num_host_allocations,
          .read_backs = num_read_backs,
          .waits = num_waits,
          .thread_kernels = num_thread_kernels};
}

void reach_host_memory(bool reached) { host_memory_is_reached = reached; }

void fail_emulated_peers(const std::string& step) {
  const std::lock_guard lock(peers_mutex);
  failing_step = step;
}

EmulatedDevice::EmulatedDevice(int64_t capacity, bool fp8, bool reversed, int64_t shared_bytes)
    : arena_(capacity),
      threads_({.checks = false, .arithmetic = emulation::Arithmetic::plain, .backwards = reversed}),
      shared_bytes_(shared_bytes),
      fp8_(fp8),
      reversed_(reversed) {
  void* data =
      ::mmap(nullptr, static_cast<size_t>(capacity), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    throw OutOfMemory(str_cat("[cuda-emulated] cannot reserve ", capacity, " bytes of address space"));
  memory_ = static_cast<char*>(data);
  ::madvise(memory_, static_cast<size_t>(capacity), MADV_HUGEPAGE);  // make_accessible takes its time by the page
}

EmulatedDevice::~EmulatedDevice() { ::munmap(memory_, static_cast<size_t>(arena_.bytes())); }

void EmulatedDevice::make_accessible(bool accessible) {
  ::mprotect(memory_, static_cast<size_t>(arena_.bytes()), accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void EmulatedDevice::begin_kernel() {
  if (kernels_before_failure == 0) throw DeviceFailure("[cuda-emulated] a test made this device fail");
  if (kernels_before_failure > 0) --kernels_before_failure;
  ++num_kernels_;
  make_accessible(true);
}
void EmulatedDevice::end_kernel() { make_accessible(false); }

void* EmulatedDevice::allocate(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  const int64_t offset = arena_.allocate(bytes);
  if (offset < 0) throw OutOfMemory(str_cat("[cuda-emulated] cannot allocate ", bytes, " bytes"));
  clear(memory_ + offset, bytes);
  return memory_ + offset;
}

// Fills a range with zeros. It replaces whole huge pages by a new mapping instead of writing them, so a large buffer
// costs only the pages in use. make_accessible() then has few pages to walk.
void EmulatedDevice::clear(char* data, int64_t bytes) {
  char* const end = data + bytes;
  char* const first =
      reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage);
  char* const last = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(end) / kHugePage * kHugePage);
  make_accessible(true);
  if (first < last) {
    ::mmap(first, static_cast<size_t>(last - first), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    ::madvise(first, static_cast<size_t>(last - first), MADV_HUGEPAGE);
    std::memset(data, 0, static_cast<size_t>(first - data));
    std::memset(last, 0, static_cast<size_t>(end - last));
  } else {
    std::memset(data, 0, static_cast<size_t>(bytes));
  }
  make_accessible(false);
}

void EmulatedDevice::free(void* data, int64_t bytes) noexcept {
  clear(static_cast<char*>(data), bytes);
  arena_.free(static_cast<char*>(data) - memory_, bytes);
}

void EmulatedDevice::run_threads(int64_t blocks, int threads, int64_t shared_bytes,
                                 void (*entry)(const void*, uint32_t), const void* kernel) {
  LC_CHECK(shared_bytes <= shared_bytes_, shared_bytes, " bytes of shared memory for a block, which has ",
           shared_bytes_);
  ++num_thread_kernels;
  begin_kernel();
  threads_.run(blocks, threads, shared_bytes, entry, kernel);
  end_kernel();
  if (threads_.findings().total() == 0) return;
  const std::string text = threads_.findings().texts()[0];
  threads_.forget_findings();
  throw Error(str_cat("[", name(), "] ", text));
}

void* EmulatedDevice::share_memory(int64_t bytes, SharedMemoryHandle& handle) {
  if (fails_in("share")) throw Error("a test made this device share no memory");
  void* const data = std::calloc(1, static_cast<size_t>(bytes));  // aligned to 16 bytes
  if (!data) throw OutOfMemory(str_cat("[cuda-emulated] cannot allocate ", bytes, " bytes"));
  handle = {};
  std::strcpy(handle.machine, fails_in("machine") ? "another" : "emulated");
  std::memcpy(handle.memory, &data, sizeof(data));
  return data;
}

// Ends the program where another rank has the memory mapped: its kernels may still use it.
void EmulatedDevice::free_shared(void* data) noexcept {
  const std::lock_guard lock(peers_mutex);
  LC_CHECK(!mappings.contains(data), "shared memory is freed while another rank has it mapped");
  std::free(data);
}

void* EmulatedDevice::map_shared(const SharedMemoryHandle& handle) {
  if (fails_in("map")) throw Error("a test made this device map no memory");
  void* data = nullptr;
  std::memcpy(&data, handle.memory, sizeof(data));
  const std::lock_guard lock(peers_mutex);
  mappings.insert(data);
  return data;
}

void EmulatedDevice::unmap_shared(void* data) noexcept {
  const std::lock_guard lock(peers_mutex);
  mappings.erase(mappings.find(data));
}

void EmulatedDevice::wait_for_ranks(std::function<bool()> still) {
  if (!still) return threads_.wait_for_others({});
  threads_.wait_for_others([still = std::move(still)] {
    constexpr std::chrono::microseconds kTurn{20};  // for the other ranks' threads
    std::this_thread::sleep_for(kTurn);
    return still();
  });
}

bool EmulatedDevice::reads_registered_memory() const { return host_memory_is_reached; }

void* EmulatedDevice::allocate_host(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  ++num_host_allocations;
  void* data = std::calloc(1, static_cast<size_t>(bytes));
  if (!data) throw OutOfMemory(str_cat("[cuda-emulated] cannot allocate ", bytes, " bytes of host memory"));
  return data;
}

void EmulatedDevice::free_host(void* data, int64_t) noexcept { std::free(data); }

void EmulatedDevice::copy_from_host(void* device_data, const void* host_data, int64_t bytes) {
  copy(device_data, host_data, bytes);
}
void EmulatedDevice::copy_to_host(void* host_data, const void* device_data, int64_t bytes) {
  ++num_read_backs;
  copy(host_data, device_data, bytes);
}
void EmulatedDevice::upload(void* device_data, const void* host_data, int64_t bytes) {
  ++num_uploads;
  copy(device_data, host_data, bytes);
}
void EmulatedDevice::download(void* host_data, const void* device_data, int64_t bytes) {
  copy(host_data, device_data, bytes);
}

void EmulatedDevice::copy(void* to, const void* from, int64_t bytes) {
  begin_kernel();
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));  // memcpy takes no null, even for 0 bytes
  end_kernel();
}

int64_t EmulatedDevice::submit(std::function<void()> work) {
  ++last_ticket_;
  try {
    work();
  } catch (...) {
    failures_[last_ticket_] = std::current_exception();
    in_branch_ = false;
  }
  return last_ticket_;
}

void EmulatedDevice::wait(int64_t ticket) {
  ++num_waits;
  if (const auto failure = failures_.extract(ticket)) std::rethrow_exception(failure.mapped());
}

std::unique_ptr<Recording> EmulatedDevice::record(std::function<void()> work) {
  return std::make_unique<ReplayedFunction>(std::move(work), num_kernels_);
}

int64_t EmulatedDevice::padded_rows(int64_t rows) const { return graph_rows(rows); }

}  // namespace longcat
