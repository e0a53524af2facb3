// Grouped bf16 linear layer of the experts for Hopper: dense_sm90.cuh with one problem per expert.
//
// A small kernel writes each expert's shape, pointers and strides from expert_offsets on the device. The host never
// needs the counts, so the launch can be recorded. Experts without rows have no tiles. Bound: at decode, the weights of
// the picked experts; from about 200 rows per expert on, WGMMA.
#pragma once

#include "cutlass/cutlass.h"
//
#include "cute/tensor.hpp"
#include "cutlass/bfloat16.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_mma_decl.hpp"
#include "cutlass/gemm/collective/sm90_mma_array_tma_gmma_ss_warpspecialized.hpp"
#include "cutlass/gemm/group_array_problem_shape.hpp"
//
#include "cutlass/gemm/collective/builders/sm90_gmma_builder.inl"
#include "cutlass/gemm/kernel/gemm_universal_decl.h"
#include "cutlass/gemm/kernel/tile_scheduler.hpp"
//
#include "cutlass/gemm/kernel/sm90_gemm_array_tma_warpspecialized_cooperative.hpp"
//
#include "cuda/device/check.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/grouped_layout.h"
#include "cuda/gemm/launch_sm90.cuh"

namespace longcat {

template <class Kernel>
struct GroupedArrays {
  using Element = cutlass::bfloat16_t;
  typename Kernel::ProblemShape::UnderlyingProblemShape* shapes;
  const Element** weights;
  const Element** inputs;
  Element** outputs;
  typename Kernel::InternalStrideA* weight_strides;
  typename Kernel::InternalStrideB* input_strides;
  typename Kernel::InternalStrideD* output_strides;

  GroupedArrays(GroupedLayout& layout, int64_t num_experts) {
    layout.place(shapes, num_experts);
    layout.place(weights, num_experts);
    layout.place(inputs, num_experts);
    layout.place(outputs, num_experts);
    layout.place(weight_strides, num_experts);
    layout.place(input_strides, num_experts);
    layout.place(output_strides, num_experts);
  }
};

template <class Kernel>
__global__ void describe_experts(const GroupedArrays<Kernel> arrays, const GroupedProblem problem,
                                 const __grid_constant__ GroupedWeights weights) {
  using Element = cutlass::bfloat16_t;
  for (int e = threadIdx.x; e < weights.num_experts; e += blockDim.x) {
    const int64_t first = first_row(problem, e), rows = first_row(problem, e + 1) - first;
    arrays.shapes[e] = {static_cast<int>(weights.out_features), static_cast<int>(rows),
                        static_cast<int>(weights.in_features)};
    arrays.weights[e] = static_cast<const Element*>(weights.data[e]);
    arrays.inputs[e] = static_cast<const Element*>(problem.x) + first * problem.x_stride;
    arrays.outputs[e] = static_cast<Element*>(problem.out) + first * problem.out_stride;
    cute::get<0>(arrays.weight_strides[e]) = weights.in_features;
    cute::get<0>(arrays.input_strides[e]) = problem.x_stride;
    cute::get<1>(arrays.output_strides[e]) = problem.out_stride;
  }
}

template <int TileTokens>
void run_grouped_sm90(const GroupedProblem& p, const GroupedWeights& weights, GpuDevice& device,
                      const Buffer& workspace) {
  using namespace cute;
  using Element = cutlass::bfloat16_t;
  using Tile = Shape<_128, Int<TileTokens>, _64>;
  using Cluster = Shape<_1, _1, _1>;
  constexpr int kAlign = 8;  // number of elements in 16 bytes
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, cutlass::layout::ColumnMajor*, kAlign,
      Element, cutlass::layout::ColumnMajor*, kAlign,
      cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor*, kAlign, Element,
      cutlass::layout::ColumnMajor*, kAlign, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative>::CollectiveOp;
  using Kernel =
      cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<Shape<int, int, int>>, Mainloop, Epilogue>;

  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  GroupedLayout layout(workspace.data(), workspace.bytes());
  const GroupedArrays<Kernel> arrays(layout, weights.num_experts);
  describe_experts<Kernel><<<1, 256, 0, stream>>>(arrays, p, weights);
  check_launch(stream);

  typename Kernel::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGrouped,
                                       {weights.num_experts, arrays.shapes, nullptr},
                                       {arrays.weights, arrays.weight_strides, arrays.inputs, arrays.input_strides},
                                       {{}, nullptr, nullptr, arrays.outputs, arrays.output_strides}};
  arguments.epilogue.thread.alpha = 1;
  arguments.epilogue.thread.beta = 0;
  arguments.hw_info.sm_count = device.num_multiprocessors();
  LC_CHECK(Kernel::can_implement(arguments), "grouped [", weights.out_features, ", ", weights.in_features, "]");
  LC_CHECK(static_cast<int64_t>(Kernel::get_workspace_size(arguments)) <= layout.remaining());
  const typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, layout.rest());
  CUTLASS_CHECK(Kernel::initialize_workspace(arguments, layout.rest(), stream));

  launch_sm90<Kernel>(device, params, Overlap::no);
}

}  // namespace longcat
