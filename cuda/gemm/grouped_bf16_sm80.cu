// Grouped bf16 linear layer of the experts for Ampere and later: dense_sm80.cuh with one problem per expert. A kernel
// writes shapes and pointers on the device, where the blocks find their tiles (kDeviceOnly).
#include "cutlass/cutlass.h"
//
#include "cutlass/bfloat16.h"
#include "cutlass/epilogue/thread/linear_combination.h"
#include "cutlass/gemm/device/gemm_grouped.h"
#include "cutlass/gemm/kernel/default_gemm_grouped.h"
//
#include "cuda/device/check.h"
#include "cuda/gemm/grouped_layout.h"
#include "cuda/gemm/instances.h"

namespace longcat {

namespace {

using Element = cutlass::bfloat16_t;
constexpr int kAlign = 8, kStages = 4;
using Kernel = cutlass::gemm::kernel::DefaultGemmGrouped<
    Element, cutlass::layout::RowMajor, cutlass::ComplexTransform::kNone, kAlign, Element, cutlass::layout::ColumnMajor,
    cutlass::ComplexTransform::kNone, kAlign, Element, cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp,
    cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 128, 32>, cutlass::gemm::GemmShape<64, 64, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>, cutlass::epilogue::thread::LinearCombination<Element, 8, float, float>,
    cutlass::gemm::threadblock::GemmBatchedIdentityThreadblockSwizzle, kStages,
    cutlass::gemm::kernel::GroupScheduleMode::kDeviceOnly>::GemmKernel;
using Gemm = cutlass::gemm::device::GemmGrouped<Kernel>;

struct Arrays {
  cutlass::gemm::GemmCoord* shapes;
  Element **inputs, **weights, **outputs;
  int64_t *input_strides, *weight_strides, *output_strides;
};

__global__ void describe_experts(const Arrays arrays, const GroupedProblem problem,
                                 const __grid_constant__ GroupedWeights weights) {
  for (int e = threadIdx.x; e < weights.num_experts; e += blockDim.x) {
    const int64_t first = first_row(problem, e), rows = first_row(problem, e + 1) - first;
    arrays.shapes[e] = {static_cast<int>(rows), static_cast<int>(weights.out_features),
                        static_cast<int>(weights.in_features)};
    arrays.inputs[e] = static_cast<Element*>(const_cast<void*>(problem.x)) + first * problem.x_stride;
    arrays.weights[e] = static_cast<Element*>(const_cast<void*>(weights.data[e]));
    arrays.outputs[e] = static_cast<Element*>(problem.out) + first * problem.out_stride;
    arrays.input_strides[e] = problem.x_stride;
    arrays.weight_strides[e] = weights.in_features;
    arrays.output_strides[e] = problem.out_stride;
  }
}

}  // namespace

void grouped_bf16_sm80(const GroupedProblem& p, const GroupedWeights& weights, GpuDevice& device,
                       const Buffer& workspace) {
  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  GroupedLayout layout(workspace.data(), workspace.bytes());
  Arrays arrays;
  layout.place(arrays.shapes, weights.num_experts);
  layout.place(arrays.inputs, weights.num_experts);
  layout.place(arrays.weights, weights.num_experts);
  layout.place(arrays.outputs, weights.num_experts);
  layout.place(arrays.input_strides, weights.num_experts);
  layout.place(arrays.weight_strides, weights.num_experts);
  layout.place(arrays.output_strides, weights.num_experts);
  describe_experts<<<1, 256, 0, stream>>>(arrays, p, weights);
  check_launch(stream);

  const Gemm::Arguments arguments(arrays.shapes, weights.num_experts, device.num_multiprocessors(), {1.0f, 0.0f},
                                  arrays.inputs, arrays.weights, arrays.outputs, arrays.outputs, arrays.input_strides,
                                  arrays.weight_strides, arrays.output_strides, arrays.output_strides);
  Gemm gemm;
  CUTLASS_CHECK(gemm.initialize(arguments, layout.rest(), stream));
  CUTLASS_CHECK(gemm.run(stream));
  check_launch(stream);
}

}  // namespace longcat
