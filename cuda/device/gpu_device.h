// The interface of a GPU that CudaOps needs beyond Device: its stream and its abilities.
#pragma once

#include <functional>

#include "base/device.h"
#include "base/error.h"
#include "cuda/device/shared_memory.h"

namespace longcat {

class GpuDevice : public Device {
 public:
  // True without a GPU: the host walks a kernel's blocks one after the other (block.h).
  virtual bool emulated() const { return false; }

  // The cudaStream_t for launches: the branch stream between begin_branch and end_branch, else the main stream.
  virtual void* stream() = 0;
  virtual bool in_branch() const { return false; }

  // Whether the next kernel of the current stream may begin before the one before it ends (programmatic dependent
  // launch): on 9.0 and 12.x, right behind a kernel. Every launch asks once.
  virtual bool next_kernel_overlaps() { return false; }
  // The current stream has work that is no kernel of ours: the next one waits for it whole.
  virtual void end_overlap() {}

  virtual int num_multiprocessors() const { return 1; }
  virtual int compute_capability() const { return 0; }  // 90 for 9.0
  virtual bool multiplies_fp8() const { return compute_capability() == 90; }
  // The most shared memory that a block can have [bytes]: 227 KiB on 9.0, 99 KiB on 8.6, 8.9 and 12.x.
  virtual int64_t shared_bytes() const { return int64_t{227} << 10; }
  // Whether kernels over mma.sync serve few tokens: where it gives the bits of the instructions for many tokens. On 9.0
  // those are wgmma, elsewhere the same mma.sync.
  virtual bool multiplies_few_tokens() const { return compute_capability() >= 80; }
  // Whether packed matrices are multiplied on tensor cores. One kernel serves any number of tokens.
  virtual bool multiplies_packed() const { return compute_capability() >= 80; }
  virtual bool reads_pageable_memory() const { return false; }   // host memory as mapped by the process
  virtual bool reads_registered_memory() const { return true; }  // pinned host memory, by the host's pointers

  // Memory for the kernels of several ranks, zeroed: share_memory() allocates it, and map_shared() finds that of
  // another rank. They throw Error where that is refused. Unmap before the other rank frees; both wait for the device.
  virtual void* share_memory(int64_t /*bytes*/, SharedMemoryHandle& /*handle*/) {
    throw Error("this device shares no memory");
  }
  virtual void free_shared(void* /*data*/) noexcept {}
  virtual void* map_shared(const SharedMemoryHandle& /*handle*/) { throw Error("this device maps no memory"); }
  virtual void unmap_shared(void* /*data*/) noexcept {}
  // On an emulated device: asked while its kernel waits for other ranks. Returns whether to wait on.
  virtual void wait_for_ranks(std::function<bool()> /*still*/) {}

  // Emulated device memory is accessible only between these two calls, so that host code which touches it crashes.
  virtual void begin_kernel() {}
  virtual void end_kernel() {}
  // Runs a kernel over simt.h on an emulated device: entry(kernel, address of the shared memory) in each thread.
  virtual void run_threads(int64_t /*blocks*/, int /*threads*/, int64_t /*shared_bytes*/,
                           void (* /*entry*/)(const void*, uint32_t), const void* /*kernel*/) {
    LC_CHECK(false, "run_threads() on a GPU");
  }
  // Walks blocks and threads backwards, for tests: no result may depend on their order.
  virtual bool reversed() const { return false; }
};

}  // namespace longcat
