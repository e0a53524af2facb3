#include "cuda/gemm/gate_up_sm90.cuh"
#include "cuda/gemm/instances.h"

namespace longcat {

void gate_up_bf16_sm90_128(const GroupedProblem& problem, const GroupedWeights& gates, const GroupedWeights& ups,
                           GpuDevice& device, const Buffer& workspace) {
  run_gate_up_sm90<128>(problem, gates, ups, device, workspace);
}

}  // namespace longcat
