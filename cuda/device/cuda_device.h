// One GPU: a main stream, a branch stream, one arena of memory.
//
// submit() runs its function on the calling thread, which puts work on the stream, and then records an event. It waits
// only for free space in the ring of pinned memory, or for an unpinned copy that does not fit into the ring. upload()
// copies unpinned host memory to the ring at once. download() to unpinned memory is complete after a wait for its
// ticket.
#pragma once

#include <cuda_runtime.h>

#include <deque>
#include <exception>
#include <map>
#include <vector>

#include "cuda/device/arena.h"
#include "cuda/device/gpu_device.h"

namespace longcat {

class CudaDevice : public GpuDevice {
 public:
  // memory_share, num_communicators: see arena_bytes. Throws Error or OutOfMemory.
  CudaDevice(int device_idx, double memory_share, int num_communicators = 0);
  ~CudaDevice() override;

  static int count();  // of devices that this process can use

  std::string name() const override { return "cuda:" + std::to_string(device_idx_); }
  int64_t default_cache_bytes(int64_t ranks_here) const override;
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
  void begin_branch() override;
  void end_branch() override;
  void join_branch() override;

  void* stream() override { return in_branch_ ? branch_stream_ : main_stream_; }
  bool in_branch() const override { return in_branch_; }
  bool next_kernel_overlaps() override;
  void end_overlap() override { behind_kernel_[in_branch_] = false; }
  int num_multiprocessors() const override { return num_multiprocessors_; }
  int compute_capability() const override { return compute_capability_; }
  int64_t shared_bytes() const override { return shared_bytes_; }
  bool reads_pageable_memory() const override { return reads_pageable_memory_; }
  bool reads_registered_memory() const override { return reads_registered_memory_; }
  // Outside the arena, because a handle is of a whole allocation: 8 MiB for 8 ranks.
  void* share_memory(int64_t bytes, SharedMemoryHandle& handle) override;
  void free_shared(void* data) noexcept override;
  void* map_shared(const SharedMemoryHandle& handle) override;
  void unmap_shared(void* data) noexcept override;
  const Arena& arena() const { return arena_; }

 private:
  // Host memory that the device can access.
  struct Pinned {
    int64_t bytes;    // rounded to pages
    bool registered;  // true: our pages; false: the driver's
  };
  // A copy out of the ring that the host makes when the ticket is done.
  struct LateCopy {
    void* to;
    const void* from;
    int64_t bytes;
  };
  struct Ticket {
    int64_t number;
    cudaEvent_t event;
    int64_t ring_bytes;  // size of its part of the ring
    std::vector<LateCopy> late_copies;
    std::exception_ptr failure;
  };

  explicit CudaDevice(int device_idx);  // reads the device's properties and allocates nothing

  void* allocate_by_driver(int64_t bytes, cudaError_t refused);
  bool is_pinned(const void* data, int64_t bytes) const;
  char* take_from_ring(int64_t bytes);  // nullptr when it does not fit
  void complete_oldest();
  void make_current() const;
  // The main stream, for work that is no kernel.
  cudaStream_t no_kernel() {
    behind_kernel_[0] = false;
    return main_stream_;
  }

  int device_idx_, num_multiprocessors_ = 1, compute_capability_ = 0;
  int64_t shared_bytes_ = 0;
  bool reads_pageable_memory_ = false, reads_registered_memory_ = false;
  cudaStream_t main_stream_ = nullptr, branch_stream_ = nullptr;
  cudaEvent_t fork_event_ = nullptr, join_event_ = nullptr;
  bool in_branch_ = false;
  bool behind_kernel_[2] = {};  // by stream: its last work is a kernel
  char* memory_ = nullptr;
  Arena arena_{0};
  std::map<const char*, Pinned> pinned_;  // from allocate_host, by start address
  char* ring_ = nullptr;
  int64_t ring_next_ = 0, ring_used_ = 0;  // [bytes]; ring_used_: of all tickets in flight
  Ticket* current_ = nullptr;              // of the current submit()
  std::deque<Ticket> tickets_;             // in flight, oldest first
  std::map<int64_t, std::exception_ptr> failures_;
  std::vector<cudaEvent_t> free_events_;
  int64_t last_ticket_ = 0;
};

}  // namespace longcat
