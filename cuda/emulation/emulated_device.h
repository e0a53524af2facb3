// Replaces a GPU in tests. The host walks the kernels. "Device" memory is inaccessible outside of kernels, so host code
// that touches a device pointer crashes here, as it would fail with a GPU.
#pragma once

#include <exception>
#include <functional>
#include <map>
#include <string>

#include "cuda/device/arena.h"
#include "cuda/device/gpu_device.h"
#include "cuda/emulation/simt_emulator.h"

namespace longcat {

// For tests of failures. After `num_kernels` more kernels and copies, all emulated devices of this process fail, like a
// GPU after an illegal address. A negative number makes them work again.
void fail_emulated_kernels(int64_t num_kernels);

// For tests: counts calls on all emulated devices of this process so far.
struct EmulatedCalls {
  int64_t uploads, host_allocations;
  int64_t read_backs, waits;  // copies that the host waits for, and waits for a ticket
  int64_t thread_kernels;     // launches of kernels over simt.h
};
EmulatedCalls emulated_calls();

// For tests: whether emulated devices reach pinned host memory by its pointer, as a GPU may not.
void reach_host_memory(bool reached);

// For tests: makes one device fail, the next that takes this step: "share", "map" or, as one of another machine,
// "machine". Empty: none.
void fail_emulated_peers(const std::string& step);

class EmulatedDevice : public GpuDevice {
 public:
  // capacity: size of the address space [bytes]; pages are taken at first use. fp8, reversed, shared_bytes: see
  // GpuDevice.
  EmulatedDevice(int64_t capacity, bool fp8, bool reversed, int64_t shared_bytes = int64_t{227} << 10);
  ~EmulatedDevice() override;

  std::string name() const override { return reversed_ ? "cuda-emulated-reversed" : "cuda-emulated"; }
  int64_t default_cache_bytes(int64_t) const override { return arena_.largest_free() / 4; }
  void* allocate(int64_t bytes) override;
  void free(void* data, int64_t bytes) noexcept override;
  void* allocate_host(int64_t bytes) override;
  void free_host(void* data, int64_t bytes) noexcept override;
  void copy_from_host(void* device_data, const void* host_data, int64_t bytes) override;
  void copy_to_host(void* host_data, const void* device_data, int64_t bytes) override;
  int64_t submit(std::function<void()> work) override;
  void wait(int64_t ticket) override;
  void upload(void* device_data, const void* host_data, int64_t bytes) override;
  void download(void* host_data, const void* device_data, int64_t bytes) override;
  void copy(void* to, const void* from, int64_t bytes) override;
  std::unique_ptr<Recording> record(std::function<void()> work) override;
  bool warms_recordings() const override { return true; }
  int64_t padded_rows(int64_t rows) const override;
  void begin_branch() override { in_branch_ = true; }
  void end_branch() override { in_branch_ = false; }

  bool emulated() const override { return true; }
  void* stream() override { return this; }
  bool in_branch() const override { return in_branch_; }
  // The ranks are threads of this process, so a handle holds an address. This memory is always accessible.
  void* share_memory(int64_t bytes, SharedMemoryHandle& handle) override;
  void free_shared(void* data) noexcept override;
  void* map_shared(const SharedMemoryHandle& handle) override;
  void unmap_shared(void* data) noexcept override;
  void wait_for_ranks(std::function<bool()> still) override;
  void begin_kernel() override;
  void end_kernel() override;
  void run_threads(int64_t blocks, int threads, int64_t shared_bytes, void (*entry)(const void*, uint32_t),
                   const void* kernel) override;
  int num_multiprocessors() const override { return reversed_ ? 3 : 4; }  // no result may depend on it
  bool reversed() const override { return reversed_; }
  int64_t shared_bytes() const override { return shared_bytes_; }
  bool multiplies_fp8() const override { return fp8_; }
  bool multiplies_few_tokens() const override { return true; }
  bool multiplies_packed() const override { return true; }
  bool reads_registered_memory() const override;

  const Arena& arena() const { return arena_; }

 private:
  void clear(char* data, int64_t bytes);
  void make_accessible(bool accessible);

  Arena arena_;
  emulation::SimtEmulator threads_;
  int64_t shared_bytes_;
  bool fp8_, reversed_, in_branch_ = false;
  char* memory_ = nullptr;
  int64_t last_ticket_ = 0;
  int64_t num_kernels_ = 0;  // started, including copies
  std::map<int64_t, std::exception_ptr> failures_;
};

}  // namespace longcat
