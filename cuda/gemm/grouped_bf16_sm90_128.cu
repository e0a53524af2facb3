#include "cuda/gemm/grouped_sm90.cuh"
#include "cuda/gemm/instances.h"

namespace longcat {

void grouped_bf16_sm90_128(const GroupedProblem& problem, const GroupedWeights& weights, GpuDevice& device,
                           const Buffer& workspace) {
  run_grouped_sm90<128>(problem, weights, device, workspace);
}

}  // namespace longcat
