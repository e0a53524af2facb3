// What CudaOps needs of its device beyond Device: where kernels run.
#pragma once

#include "base/device.h"

namespace longcat {

class GpuDevice : public Device {
 public:
  // No GPU: the blocks of a kernel are walked one after the other on the host (block.h).
  virtual bool emulated() const { return false; }

  // cudaStream_t that kernels are launched on now: the main one, or the branch between begin_branch and end_branch.
  virtual void* stream() = 0;
  virtual bool in_branch() const { return false; }

  virtual int num_multiprocessors() const { return 1; }
  virtual int compute_capability() const { return 0; }  // 90 for 9.0
  virtual bool multiplies_fp8() const { return compute_capability() == 90; }
  virtual bool reads_pageable_memory() const { return false; }   // of the host, as it is mapped
  virtual bool reads_registered_memory() const { return true; }  // of the host, by the host's own pointers

  // Emulated device memory is accessible only between these two, so that the host code never touches it by mistake.
  virtual void begin_kernel() {}
  virtual void end_kernel() {}
  // Walk blocks and threads backwards, for tests: no result may depend on their order.
  virtual bool reversed() const { return false; }
};

}  // namespace longcat
