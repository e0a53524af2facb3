// Memory full of random numbers, made where it is: tens of GB take milliseconds on a GPU.
#pragma once

#include "base/dtype.h"
#include "cuda/device/gpu_device.h"

namespace longcat {

// Inside submitted work: `count` numbers near a normal distribution of mean 0, the same ones on every device. f32 or
// bf16; data: aligned to 16 bytes, device memory or host memory that the device reaches.
void fill_normal(GpuDevice& device, void* data, DType dtype, int64_t count, float deviation, uint64_t seed);

}  // namespace longcat
