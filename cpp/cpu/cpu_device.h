// Host memory as a Device.
#pragma once

#include "base/device.h"

namespace longcat {

class CpuDevice final : public Device {
 public:
  std::string name() const override { return "cpu"; }
  void* allocate(int64_t bytes) override;
  void free(void* data, int64_t bytes) noexcept override;
  void copy_from_host(void* device_data, const void* host_data, int64_t bytes) override;
  void copy_to_host(void* host_data, const void* device_data, int64_t bytes) override;
};

}  // namespace longcat
