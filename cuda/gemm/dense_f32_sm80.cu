#include "cuda/gemm/dense_sm80.cuh"
#include "cuda/gemm/instances.h"

namespace longcat {

void dense_f32_sm80(const GemmProblem& problem, GpuDevice& device, const Buffer& workspace) {
  run_dense_sm80<float>(problem, device, workspace);
}

}  // namespace longcat
