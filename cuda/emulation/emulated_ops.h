// The CUDA backend on an emulated device.
#pragma once

#include <memory>

#include "cuda/cuda_ops.h"

namespace longcat {

// fp8: emulates a device that multiplies fp8. reversed: walks blocks and threads backwards. small: a block has the
// shared memory of a small card, 99 KiB.
std::unique_ptr<CudaOps> make_emulated_cuda_ops(DType activation_dtype, bool fp8, bool reversed, bool small = false);

}  // namespace longcat
