// Turns errors of the CUDA runtime into exceptions: OutOfMemory, or DeviceFailure for all others, which ends the
// engine.
#pragma once

#include <cuda_runtime.h>

#include "base/error.h"

namespace longcat {

[[noreturn]] void cuda_failed(cudaError_t status, const char* file, int line, const char* expression);

// Call it after each launch: it reports a bad configuration. With LONGCAT_SYNC=1 it also waits, to find the failing
// kernel.
void check_launch(cudaStream_t stream);

}  // namespace longcat

#define CUDA_CHECK(expression)                                                         \
  do {                                                                                 \
    if (const cudaError_t status_ = (expression); status_ != cudaSuccess) [[unlikely]] \
      ::longcat::cuda_failed(status_, __FILE__, __LINE__, #expression);                \
  } while (0)
