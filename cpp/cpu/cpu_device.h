// Host memory as a Device, with a thread that runs submitted work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "base/device.h"

namespace longcat {

class CpuDevice : public Device {
 public:
  explicit CpuDevice(int num_threads) : num_threads_(num_threads) {}
  ~CpuDevice() override;

  std::string name() const override { return "cpu"; }
  int64_t default_cache_bytes(int64_t ranks_here) const override;
  void* allocate(int64_t bytes) override;
  void free(void* data, int64_t bytes) noexcept override;
  void* allocate_host(int64_t bytes) override { return allocate(bytes); }
  void free_host(void* data, int64_t bytes) noexcept override { free(data, bytes); }
  void copy_from_host(void* device_data, const void* host_data, int64_t bytes) override;
  void copy_to_host(void* host_data, const void* device_data, int64_t bytes) override;
  int64_t submit(std::function<void()> work) override;
  void wait(int64_t ticket) override;
  void upload(void* device_data, const void* host_data, int64_t bytes) override;
  void download(void* host_data, const void* device_data, int64_t bytes) override;
  void copy(void* to, const void* from, int64_t bytes) override;
  std::unique_ptr<Recording> record(std::function<void()> work) override;
  int64_t padded_rows(int64_t rows) const override { return rows; }
  bool leaves_host_free() const override;

 private:
  struct Job {
    int64_t ticket;
    std::function<void()> work;
  };
  void run();

  const int num_threads_;  // number of compute threads
  std::mutex mutex_;
  std::condition_variable submitted_;
  std::deque<Job> jobs_;
  std::map<int64_t, std::exception_ptr> failures_;  // of tickets not yet waited for
  int64_t last_ticket_ = 0;
  std::atomic<int64_t> done_{0};  // all tickets up to this one
  bool stop_ = false;
  std::thread worker_;  // started by the first submit
};

}  // namespace longcat
