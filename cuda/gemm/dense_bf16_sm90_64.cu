#include "cuda/gemm/dense_sm90.cuh"
#include "cuda/gemm/instances.h"

namespace longcat {

void dense_bf16_sm90_64(const GemmProblem& problem, GpuDevice& device, const Buffer& workspace) {
  run_dense_sm90<64, cutlass::bfloat16_t>(problem, device, workspace);
}

}  // namespace longcat
