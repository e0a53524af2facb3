// A place for memory and computation, with one implementation per backend (cpu, cuda).
//
// A device runs submitted work in order, on a thread of its own (CPU) or a stream (CUDA). The host therefore prepares a
// step while the device computes the step before.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace longcat {

// Work that is launched many times with the same buffers: a graph on CUDA, a stored function on the CPU.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void launch() = 0;  // only inside submitted work
  // Number of kernels and copies in one launch; 0 where the backend does not count them.
  virtual int64_t num_nodes() const { return 0; }
};

class Device {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual std::string name() const = 0;

  // Returns the default size of the latent cache [bytes]. Call it after the weights are loaded. ranks_here: number of
  // ranks on this machine; the CPU backend divides host memory by it, the CUDA backend ignores it.
  virtual int64_t default_cache_bytes(int64_t ranks_here) const = 0;

  // The memory is 64-byte aligned and zeroed. Throws OutOfMemory.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void free(void* data, int64_t bytes) noexcept = 0;

  // Host memory that copies to and from the device fastest (pinned on CUDA). Throws OutOfMemory.
  virtual void* allocate_host(int64_t bytes) = 0;
  virtual void free_host(void* data, int64_t bytes) noexcept = 0;

  // These two return after the data is copied.
  virtual void copy_from_host(void* device_data, const void* host_data, int64_t bytes) = 0;
  virtual void copy_to_host(void* host_data, const void* device_data, int64_t bytes) = 0;

  // Runs `work`, which calls operations and copies of this device, after all work submitted before, and returns a
  // ticket. Host memory that `work` reads must not change until the ticket is done. Only one thread may submit at a
  // time.
  virtual int64_t submit(std::function<void()> work) = 0;
  // Returns when the ticket's work is done, and throws what the work threw. Call it at most once per ticket.
  virtual void wait(int64_t ticket) = 0;

  // --- only inside submitted work, executed in its order ---------------------------------------------------------
  // fastest from allocate_host memory
  virtual void upload(void* device_data, const void* host_data, int64_t bytes) = 0;
  // complete when the ticket is done
  virtual void download(void* host_data, const void* device_data, int64_t bytes) = 0;
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;  // within the device
  virtual std::unique_ptr<Recording> record(std::function<void()> work) = 0;

  // Whether the engine should record all step sizes before the first request, because recording is slow.
  virtual bool warms_recordings() const { return false; }

  // Whether the host can work while the device computes, without slowing it down. False where the device's threads
  // occupy every core: a device thread that loses its core makes all others wait, for longer than the host's work
  // takes.
  virtual bool leaves_host_free() const { return true; }

  // Number of rows to which a step of `rows` decode tokens is padded, so that few sizes are recorded. Returns `rows`
  // where padding has no use.
  virtual int64_t padded_rows(int64_t rows) const = 0;

  // Work between begin_branch and end_branch may run concurrently with later work, until join_branch. A device without
  // parallel streams runs it in order.
  virtual void begin_branch() {}
  virtual void end_branch() {}
  virtual void join_branch() {}
};

}  // namespace longcat
