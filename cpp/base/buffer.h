// Memory on one device. The object owns it and frees it.
#pragma once

#include <initializer_list>
#include <utility>

#include "base/device.h"
#include "base/tensor.h"

namespace longcat {

class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, int64_t bytes) : device_(&device), data_(device.allocate(bytes)), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) device_->free(data_, bytes_);
  }

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  // A view of the buffer's first bytes with a dtype and shape.
  Tensor tensor(DType dtype, std::initializer_list<int64_t> shape) const {
    Tensor view(data_, dtype, shape);
    LC_CHECK(view.num_bytes() <= bytes_, view.shape_string(), " in ", bytes_, " bytes");
    return view;
  }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Host memory that the device copies to and from (Device::allocate_host).
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(Device& device, int64_t bytes) : device_(&device), data_(device.allocate_host(bytes)), bytes_(bytes) {}
  HostBuffer(HostBuffer&& other) noexcept { swap(other); }
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  ~HostBuffer() {
    if (data_) device_->free_host(data_, bytes_);
  }

  void* data() const { return data_; }

 private:
  void swap(HostBuffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace longcat
