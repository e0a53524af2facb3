#include "cuda/gemm/dense_sm90.cuh"
#include "cuda/gemm/instances.h"

namespace longcat {

void dense_f32_sm90_64(const GemmProblem& problem, GpuDevice& device, const Buffer& workspace) {
  run_dense_sm90<64, float>(problem, device, workspace);
}

}  // namespace longcat
