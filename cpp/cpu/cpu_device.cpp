#include "cpu/cpu_device.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "base/available_memory.h"
#include "base/available_threads.h"
#include "base/error.h"
#include "cpu/cpu_ops.h"
#include "ops/backend.h"

namespace longcat {

namespace {

class StoredFunction final : public Recording {
 public:
  explicit StoredFunction(std::function<void()> work) : work_(std::move(work)) {}
  void launch() override { work_(); }

 private:
  std::function<void()> work_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(int num_threads) {
  return std::make_unique<CpuOps>(num_threads > 0 ? num_threads : available_threads());
}

CpuDevice::~CpuDevice() {
  if (!worker_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  submitted_.notify_one();
  worker_.join();
}

int64_t CpuDevice::default_cache_bytes(int64_t ranks_here) const { return cache_share(available_memory(), ranks_here); }

// Anonymous pages: the kernel zeroes them at first use, so unused parts of a large pool cost nothing.
void* CpuDevice::allocate(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw OutOfMemory(str_cat("[cpu] cannot allocate ", bytes, " bytes of host memory"));
  return data;
}

void CpuDevice::free(void* data, int64_t bytes) noexcept { ::munmap(data, static_cast<size_t>(bytes)); }

void CpuDevice::copy_from_host(void* device_data, const void* host_data, int64_t bytes) {
  copy(device_data, host_data, bytes);
}

void CpuDevice::copy_to_host(void* host_data, const void* device_data, int64_t bytes) {
  copy(host_data, device_data, bytes);
}

void CpuDevice::upload(void* device_data, const void* host_data, int64_t bytes) { copy(device_data, host_data, bytes); }

void CpuDevice::download(void* host_data, const void* device_data, int64_t bytes) {
  copy(host_data, device_data, bytes);
}

void CpuDevice::copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));  // memcpy takes no null, even for 0 bytes
}

std::unique_ptr<Recording> CpuDevice::record(std::function<void()> work) {
  return std::make_unique<StoredFunction>(std::move(work));
}

bool CpuDevice::leaves_host_free() const { return num_threads_ < available_threads(); }

int64_t CpuDevice::submit(std::function<void()> work) {
  int64_t ticket;
  {
    const std::lock_guard lock(mutex_);
    if (!worker_.joinable()) worker_ = std::thread([this] { run(); });
    ticket = ++last_ticket_;
    jobs_.push_back({ticket, std::move(work)});
  }
  submitted_.notify_one();
  return ticket;
}

void CpuDevice::wait(int64_t ticket) {
  for (int64_t done = done_.load(); done < ticket; done = done_.load()) done_.wait(done);
  const std::lock_guard lock(mutex_);
  if (const auto failure = failures_.extract(ticket)) std::rethrow_exception(failure.mapped());
}

void CpuDevice::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    submitted_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
    if (jobs_.empty()) return;  // stopped, and no job is left
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      job.work();
    } catch (...) {
      failure = std::current_exception();
    }
    job.work = nullptr;  // frees what the function holds before the ticket is done
    lock.lock();
    if (failure) failures_[job.ticket] = failure;
    done_ = job.ticket;
    done_.notify_all();
  }
}

}  // namespace longcat
