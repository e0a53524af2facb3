// Where memory lives and work runs. One implementation a backend (cpu, cuda).
//
// A device works through what is submitted in order, beside the thread that submits: a stream on CUDA, a thread on the
// CPU. So the host can prepare a step while the device computes the one before.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace longcat {

// Work that is launched again and again with the same buffers: a graph on CUDA, the stored function on the CPU.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void launch() = 0;  // inside submitted work
  // Kernels and copies that a launch starts; 0 where nobody counts them.
  virtual int64_t num_nodes() const { return 0; }
};

class Device {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual std::string name() const = 0;

  // What a latent cache takes when nobody says how much [bytes]; ranks_here: that run on this machine, and share its
  // memory, not that of their GPUs. Asked for after the weights are loaded.
  virtual int64_t default_cache_bytes(int64_t ranks_here) const = 0;

  // 64-byte aligned and zeroed. Throws OutOfMemory.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void free(void* data, int64_t bytes) noexcept = 0;

  // Host memory that the device copies to and from fastest (pinned on CUDA). Throws OutOfMemory.
  virtual void* allocate_host(int64_t bytes) = 0;
  virtual void free_host(void* data, int64_t bytes) noexcept = 0;

  // The host waits for the data to be copied.
  virtual void copy_from_host(void* device_data, const void* host_data, int64_t bytes) = 0;
  virtual void copy_to_host(void* host_data, const void* device_data, int64_t bytes) = 0;

  // Runs `work`, which calls operations and copies of this device, after all that was submitted before. Returns a
  // ticket. What `work` reads of the host must stay as it is until the ticket is done. One thread submits at a time.
  virtual int64_t submit(std::function<void()> work) = 0;
  // Returns when the work of the ticket is done; throws what it threw. A ticket is waited for once at most.
  virtual void wait(int64_t ticket) = 0;

  // --- only inside submitted work, in its order ------------------------------------------------------------------
  virtual void upload(void* device_data, const void* host_data, int64_t bytes) = 0;    // fastest from allocate_host
  virtual void download(void* host_data, const void* device_data, int64_t bytes) = 0;  // done when the ticket is
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;                    // on the device
  virtual std::unique_ptr<Recording> record(std::function<void()> work) = 0;

  // Whether recording takes long enough to be done before the first request.
  virtual bool warms_recordings() const { return false; }

  // Whether the host can work beside the device without taking time from it: not where the device's threads are on
  // every core. A thread that is pushed aside for the host's keeps all others waiting, much longer than the host works.
  virtual bool leaves_host_free() const { return true; }

  // Rows a step of `rows` decodes is padded to, so that few sizes are recorded; `rows` where that brings nothing.
  virtual int64_t padded_rows(int64_t rows) const = 0;

  // Work between begin_branch and end_branch may run beside what follows, until join_branch. A device without parallel
  // streams runs it in place.
  virtual void begin_branch() {}
  virtual void end_branch() {}
  virtual void join_branch() {}
};

}  // namespace longcat
