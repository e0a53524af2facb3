// Grouped fp8 linear layer for Hopper. Rows are e4m3 with a scale per 128 values, weights are e4m3 with a scale per 128
// x 128 block. f32 sums are multiplied by both scales every 128 steps of K.
//
// Tokens fill the 128-row side of a tile, because a tile then has a single weight scale. One kernel serves one row and
// thousands. Experts are described on the device as in grouped_sm90.cuh; a dense layer is one expert.
// Bound: the weights' bytes at decode. Shared memory: the epilogue's tile and stages of 2 x 16 KiB.
#include "cutlass/cutlass.h"
//
#include "cute/tensor.hpp"
#include "cutlass/bfloat16.h"
#include "cutlass/detail/blockwise_scale_layout.hpp"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/float8.h"
#include "cutlass/gemm/collective/collective_mma_decl.hpp"
#include "cutlass/gemm/collective/fp8_accumulation.hpp"
//
#include "cutlass/gemm/collective/sm90_mma_array_tma_gmma_ss_warpspecialized_fp8_blockwise_scaling.hpp"
#include "cutlass/gemm/group_array_problem_shape.hpp"
//
#include "cutlass/gemm/collective/builders/sm90_gmma_builder.inl"
#include "cutlass/gemm/kernel/gemm_universal_decl.h"
#include "cutlass/gemm/kernel/tile_scheduler.hpp"
//
#include "cutlass/gemm/kernel/sm90_gemm_array_tma_warpspecialized_cooperative.hpp"
//
#include "cuda/device/check.h"
#include "cuda/gemm/grouped_layout.h"
#include "cuda/gemm/instances.h"
#include "cuda/gemm/launch_sm90.cuh"

namespace longcat {

namespace {

using namespace cute;
using Element = cutlass::float_e4m3_t;
using Out = cutlass::bfloat16_t;
using Tile = Shape<_128, _128, _128>;
using Cluster = Shape<_1, _1, _1>;
constexpr int kAlign = 16, kAlignOut = 8;  // number of elements in 16 bytes
using Scales = cutlass::detail::Sm90BlockwiseScaleConfig<1, 128, 128>;
using InputScales = decltype(Scales::deduce_layoutSFA());
using WeightScales = decltype(Scales::deduce_layoutSFB());
using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster, cutlass::epilogue::collective::EpilogueTileAuto,
    float, float, void, cutlass::layout::RowMajor*, kAlignOut, Out, cutlass::layout::RowMajor*, kAlignOut,
    cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative>::CollectiveOp;
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cute::tuple<cutlass::layout::RowMajor*, InputScales*>,
    kAlign, Element, cute::tuple<cutlass::layout::ColumnMajor*, WeightScales*>, kAlign, float, Tile, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
    cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise>::CollectiveOp;
using Kernel =
    cutlass::gemm::kernel::GemmUniversal<cutlass::gemm::GroupProblemShape<Shape<int, int, int>>, Mainloop, Epilogue>;

struct Arrays {
  typename Kernel::ProblemShape::UnderlyingProblemShape* shapes;
  const Element **inputs, **weights;
  const float **input_scales, **weight_scales;
  Out** outputs;
  typename Kernel::InternalStrideA* input_strides;
  typename Kernel::InternalStrideB* weight_strides;
  typename Kernel::InternalStrideD* output_strides;
  InputScales* input_scale_layouts;
  WeightScales* weight_scale_layouts;
};

__global__ void describe_experts(const Arrays arrays, const GroupedProblem problem,
                                 const __grid_constant__ GroupedWeights weights) {
  const int out_features = static_cast<int>(weights.out_features), in_features = static_cast<int>(weights.in_features);
  for (int e = threadIdx.x; e < weights.num_experts; e += blockDim.x) {
    const int64_t first = first_row(problem, e), rows = first_row(problem, e + 1) - first;
    const auto shape = make_shape(static_cast<int>(rows), out_features, in_features);
    arrays.shapes[e] = shape;
    arrays.inputs[e] = static_cast<const Element*>(problem.x) + first * problem.x_stride;
    arrays.weights[e] = static_cast<const Element*>(weights.data[e]);
    arrays.input_scales[e] = problem.x_scales + input_scale_at(first, rows, first, 0, in_features);
    arrays.weight_scales[e] = weights.scales[e];
    arrays.outputs[e] = static_cast<Out*>(problem.out) + first * problem.out_stride;
    get<0>(arrays.input_strides[e]) = problem.x_stride;
    get<0>(arrays.weight_strides[e]) = in_features;
    get<0>(arrays.output_strides[e]) = problem.out_stride;
    arrays.input_scale_layouts[e] = Scales::tile_atom_to_shape_SFA(shape);
    arrays.weight_scale_layouts[e] = Scales::tile_atom_to_shape_SFB(shape);
  }
}

}  // namespace

void grouped_fp8_sm90(const GroupedProblem& p, const GroupedWeights& weights, GpuDevice& device,
                      const Buffer& workspace) {
  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  GroupedLayout layout(workspace.data(), std::min(workspace.bytes(), kGroupedWorkspaceBytes));
  Arrays arrays;
  layout.place(arrays.shapes, weights.num_experts);
  layout.place(arrays.inputs, weights.num_experts);
  layout.place(arrays.weights, weights.num_experts);
  layout.place(arrays.input_scales, weights.num_experts);
  layout.place(arrays.weight_scales, weights.num_experts);
  layout.place(arrays.outputs, weights.num_experts);
  layout.place(arrays.input_strides, weights.num_experts);
  layout.place(arrays.weight_strides, weights.num_experts);
  layout.place(arrays.output_strides, weights.num_experts);
  layout.place(arrays.input_scale_layouts, weights.num_experts);
  layout.place(arrays.weight_scale_layouts, weights.num_experts);
  describe_experts<<<1, 256, 0, stream>>>(arrays, p, weights);
  check_launch(stream);

  typename Kernel::Arguments arguments{
      cutlass::gemm::GemmUniversalMode::kGrouped,
      {weights.num_experts, arrays.shapes, nullptr},
      {arrays.inputs, arrays.input_strides, arrays.weights, arrays.weight_strides, arrays.input_scales,
       arrays.input_scale_layouts, arrays.weight_scales, arrays.weight_scale_layouts},
      {{}, nullptr, nullptr, arrays.outputs, arrays.output_strides}};
  arguments.epilogue.thread.alpha = 1;
  arguments.epilogue.thread.beta = 0;
  arguments.hw_info.sm_count = device.num_multiprocessors();
  LC_CHECK(Kernel::can_implement(arguments), "grouped fp8 [", weights.out_features, ", ", weights.in_features, "]");
  LC_CHECK(static_cast<int64_t>(Kernel::get_workspace_size(arguments)) <= layout.remaining());
  const typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, layout.rest());
  CUTLASS_CHECK(Kernel::initialize_workspace(arguments, layout.rest(), stream));

  launch_sm90<Kernel>(device, params, Overlap::no);
}

}  // namespace longcat
