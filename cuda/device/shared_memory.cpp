// Memory of a GPU that other processes map, by the handles of the CUDA runtime.
#include "cuda/device/shared_memory.h"

#include <cstring>
#include <fstream>
#include <string>

#include "cuda/device/check.h"
#include "cuda/device/cuda_device.h"

namespace longcat {

namespace {

// The kernel's id of its start: the same in all containers of a machine.
void name_machine(char (&name)[64]) {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  if (id.empty()) throw Error("this machine has no boot id");
  id.copy(name, sizeof(name) - 1);
}

// Refusals are no failures of the device.
void require(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error(str_cat(what, ": ", cudaGetErrorString(status)));
}

}  // namespace

void* CudaDevice::share_memory(int64_t bytes, SharedMemoryHandle& handle) {
  static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(handle.memory));
  make_current();
  handle = {};
  name_machine(handle.machine);
  require(cudaDeviceGetPCIBusId(handle.device, sizeof(handle.device), device_idx_), "cudaDeviceGetPCIBusId");
  void* data = nullptr;
  require(cudaMalloc(&data, static_cast<size_t>(bytes)), "cudaMalloc");
  cudaIpcMemHandle_t of_runtime;
  try {
    require(cudaMemset(data, 0, static_cast<size_t>(bytes)), "cudaMemset");
    require(cudaDeviceSynchronize(), "cudaMemset");
    require(cudaIpcGetMemHandle(&of_runtime, data), "cudaIpcGetMemHandle");
  } catch (const Error&) {
    cudaFree(data);
    throw;
  }
  std::memcpy(handle.memory, &of_runtime, sizeof(of_runtime));
  return data;
}

void CudaDevice::free_shared(void* data) noexcept {
  cudaSetDevice(device_idx_);
  cudaFree(data);
}

void* CudaDevice::map_shared(const SharedMemoryHandle& handle) {
  make_current();
  int other = 0, reaches = 1;
  if (cudaDeviceGetByPCIBusId(&other, handle.device) != cudaSuccess) {
    cudaGetLastError();  // hidden from this process (CUDA_VISIBLE_DEVICES): cudaIpcOpenMemHandle finds out
  } else if (other != device_idx_) {
    require(cudaDeviceCanAccessPeer(&reaches, device_idx_, other), "cudaDeviceCanAccessPeer");
  }
  if (!reaches) throw Error(str_cat(name(), " cannot reach the memory of GPU ", handle.device));
  cudaIpcMemHandle_t of_runtime;
  std::memcpy(&of_runtime, handle.memory, sizeof(of_runtime));
  void* data = nullptr;
  require(cudaIpcOpenMemHandle(&data, of_runtime, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
  return data;
}

void CudaDevice::unmap_shared(void* data) noexcept {
  cudaSetDevice(device_idx_);
  cudaDeviceSynchronize();  // a kernel may still write to it
  cudaIpcCloseMemHandle(data);
}

}  // namespace longcat
