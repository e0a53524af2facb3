// Fills memory with random numbers on the device: tens of GB take milliseconds on a GPU.
#pragma once

#include "base/dtype.h"
#include "cuda/device/gpu_device.h"

namespace longcat {

// Writes `count` numbers near a normal distribution of mean 0; every device makes the same ones. Call it inside
// submitted work. data: f32 or bf16, aligned to 16 bytes, in device memory or in host memory that the device reaches.
void fill_normal(GpuDevice& device, void* data, DType dtype, int64_t count, float deviation, uint64_t seed);

}  // namespace longcat
