#include "cpu/cpu_device.h"

#include <sys/mman.h>

#include <cstring>

#include "base/error.h"
#include "cpu/cpu_ops.h"
#include "ops/backend.h"

namespace longcat {

std::unique_ptr<Ops> make_cpu_ops(int num_threads) {
  return std::make_unique<CpuOps>(num_threads > 0 ? num_threads : available_threads());
}

// Anonymous pages: zeroed by the kernel when first touched, so a large pool costs only what is used of it.
void* CpuDevice::allocate(int64_t bytes) {
  if (bytes <= 0) return nullptr;
  void* data = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw OutOfMemory(str_cat("[cpu] cannot allocate ", bytes, " bytes of host memory"));
  return data;
}

void CpuDevice::free(void* data, int64_t bytes) noexcept { ::munmap(data, static_cast<size_t>(bytes)); }

void CpuDevice::copy_from_host(void* device_data, const void* host_data, int64_t bytes) {
  std::memcpy(device_data, host_data, static_cast<size_t>(bytes));
}

void CpuDevice::copy_to_host(void* host_data, const void* device_data, int64_t bytes) {
  std::memcpy(host_data, device_data, static_cast<size_t>(bytes));
}

}  // namespace longcat
