// Where memory lives and work runs. One implementation a backend (cpu, cuda).
#pragma once

#include <cstdint>
#include <string>

namespace longcat {

class Device {
 public:
  virtual ~Device() = default;

  // "cpu", "cuda:0".
  virtual std::string name() const = 0;

  // 64-byte aligned and zeroed. Throws OutOfMemory.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void free(void* data, int64_t bytes) noexcept = 0;

  // Ordered with the work of this device; the host memory may be reused on return.
  virtual void copy_from_host(void* device_data, const void* host_data, int64_t bytes) = 0;
  // Waits for the data.
  virtual void copy_to_host(void* host_data, const void* device_data, int64_t bytes) = 0;

  // Work submitted between begin_branch and end_branch may run beside what follows, until join_branch. A device
  // without parallel streams runs it in place.
  virtual void begin_branch() {}
  virtual void end_branch() {}
  virtual void join_branch() {}
};

}  // namespace longcat
