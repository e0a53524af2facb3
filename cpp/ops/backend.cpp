#include "ops/backend.h"

#include <charconv>

namespace longcat {

std::string auto_device(std::string_view proof, bool has_gpu) { return !proof.empty() && has_gpu ? "cuda" : "cpu"; }

std::string resolved_device(const std::string& device) {
  return device == "auto" ? auto_device(kGpuProof, has_gpu()) : device;
}

std::unique_ptr<Ops> make_ops(const std::string& device, int num_threads, double memory_share, int num_communicators) {
  if (device == "auto") return make_ops(resolved_device(device), num_threads, memory_share, num_communicators);
  if (device == "cpu") return make_cpu_ops(num_threads);
  if (device == "cuda") return make_cuda_ops(0, memory_share, num_communicators);
  if (device.starts_with("cuda:")) {
    int device_idx = -1;
    const char* end = device.data() + device.size();
    const auto [stop, status] = std::from_chars(device.data() + 5, end, device_idx);
    if (status == std::errc() && stop == end && device_idx >= 0)
      return make_cuda_ops(device_idx, memory_share, num_communicators);
  }
  throw std::invalid_argument(
      str_cat("[device] found device=\"", device, "\"; expected \"auto\", \"cpu\", \"cuda\" or \"cuda:N\""));
}

}  // namespace longcat
