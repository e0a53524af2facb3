// Replaces the CUTLASS kernels at link time where they are not built. choose_gemm() never selects them on an emulated
// device.
#include "cuda/gemm/gemm.h"

namespace longcat {

void run_gemm(GemmChoice, const GemmProblem&, GpuDevice&, const Buffer&) {
  throw Error("[internal] this build has no CUTLASS kernels");
}

void run_grouped_gemm(GemmChoice, const GroupedProblem&, const GroupedWeights&, GpuDevice&, const Buffer&) {
  throw Error("[internal] this build has no CUTLASS kernels");
}

void run_gate_up(GemmChoice, const GroupedProblem&, const GroupedWeights&, const GroupedWeights&, GpuDevice&,
                 const Buffer&) {
  throw Error("[internal] this build has no CUTLASS kernels");
}

}  // namespace longcat
