// Gate and up of the experts in one grouped kernel for Hopper: out = silu(x G^T) * (x U^T), all in bf16.
//
// As grouped_sm90.cuh, with two matrices an expert. A tile has 256 rows of W: 128 of G, then the same 128 of U. Each
// comes by a TMA load of its own, so both stay where they are. A thread's accumulators hold gate and up of the same
// results, so it applies SwiGLU in registers (gate_up_store.h). No copy of gate or up reaches memory. Both are rounded
// to bf16 first, and each is one ascending chain over K. So the bits are those of two layers and SiluMul.
// A dense layer is one expert. Bound: as there. Shared memory: 64-wide stages of (256 + TileTokens) rows x 128 bytes.
#pragma once

#include "cutlass/cutlass.h"
//
#include "cute/tensor.hpp"
#include "cutlass/bfloat16.h"
#include "cutlass/epilogue/collective/detail.hpp"
#include "cutlass/epilogue/dispatch_policy.hpp"
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
#include "cuda/kernels/gate_up_store.h"

namespace longcat {

namespace gate_up {

using namespace cute;
using Element = cutlass::bfloat16_t;
using Cluster = Shape<_1, _1, _1>;
constexpr int kAlign = 8;   // number of elements in 16 bytes
constexpr int kHalf = 128;  // rows of each matrix in a tile

template <int kRows, int kTokens>
using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor*, kAlign, Element,
    cutlass::layout::ColumnMajor*, kAlign, float, Shape<Int<kRows>, Int<kTokens>, _64>, Cluster,
    cutlass::gemm::collective::StageCountAutoCarveout<2048>,
    cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative>::CollectiveOp;

// CUTLASS's mainloop, whose A is loaded in two halves. Its descriptors A and B are those of the halves here, of which
// only the addresses change from an expert to the next. x has one descriptor for all experts: their rows lie behind
// each other, and what a tile has of the next expert's rows is not stored.
template <int kTokens>
struct TwoMatrices : Mainloop<2 * kHalf, kTokens> {
  using Whole = Mainloop<2 * kHalf, kTokens>;
  using Half = Mainloop<kHalf, kTokens>;
  using typename Whole::InternalElementA;
  using typename Whole::InternalElementB;
  using typename Whole::MainloopPipeline;
  using typename Whole::PipelineState;
  using typename Whole::TensorMapStorage;
  using typename Whole::TensorStorage;
  using typename Whole::TileShape;
  using HalfShape = typename Half::TileShape;

  struct Arguments : Whole::Arguments {  // ptr_A, ptr_B: the gates and the ups, on the device
    const Element *matrix, *x;           // any matrix, for the shape of a descriptor; [num_rows, depth]
    typename Whole::InternalStrideA stride;
    typename Whole::InternalStrideB x_stride;
    int num_rows, out_features, depth;
    const int32_t* expert_offsets;  // as in GroupedProblem
  };
  struct Params : Whole::Params {
    typename Half::TMA_A load_half;
    const int32_t* expert_offsets;
  };

  template <class Problem>
  static Params to_underlying_arguments(const Problem& problem, const Arguments& arguments, void* workspace) {
    const auto matrix =
        make_tensor(reinterpret_cast<const InternalElementA*>(arguments.matrix),
                    make_layout(make_shape(arguments.out_features, arguments.depth, 1u), arguments.stride));
    const auto x = make_tensor(reinterpret_cast<const InternalElementB*>(arguments.x),
                               make_layout(make_shape(arguments.num_rows, arguments.depth, 1u), arguments.x_stride));
    Params params{Whole::to_underlying_arguments(problem, arguments, workspace),
                  make_tma_copy(SM90_TMA_LOAD{}, matrix, typename Half::SmemLayoutA{}(_, _, _0{}),
                                make_shape(shape<0>(HalfShape{}), shape<2>(HalfShape{})), _1{}),
                  arguments.expert_offsets};
    params.tma_load_b = make_tma_copy(SM90_TMA_LOAD{}, x, typename Whole::SmemLayoutB{}(_, _, _0{}),
                                      make_shape(shape<1>(TileShape{}), shape<2>(TileShape{})), _1{});
    return params;
  }

  // Tiles of a matrix, tiles of x from the expert's first row on, and that row.
  template <class Problem>
  CUTLASS_DEVICE auto load_init(const Problem& problem, const Params& params) const {
    const auto matrix = params.load_half.get_tma_tensor(make_shape(get<0>(problem) / 2, get<2>(problem), 1));
    const auto x = params.tma_load_b.get_tma_tensor(make_shape(get<1>(problem), get<2>(problem), 1));
    return cute::make_tuple(local_tile(matrix, HalfShape{}, make_coord(_, _, _), Step<_1, Underscore, _1>{}),
                            local_tile(x, TileShape{}, make_coord(_, _, _), Step<Underscore, _1, _1>{}), int32_t{0});
  }
  template <class Inputs, class Problem>
  CUTLASS_DEVICE Inputs tensors_perform_update(const Inputs& inputs, const Params& params, const Problem&,
                                               int32_t expert) const {
    return Inputs{get<0>(inputs), get<1>(inputs), params.expert_offsets ? params.expert_offsets[expert] : 0};
  }

  // One thread of the producer's warp loads the stages of a tile.
  template <class Inputs, class Maps, class Coordinates, class Steps>
  CUTLASS_DEVICE void load(const Params& params, MainloopPipeline pipeline, PipelineState to, const Inputs& inputs,
                           const Maps& maps, const Coordinates& at, Steps step, int count, int, uint32_t,
                           TensorStorage& shared) const {
    if (!cute::elect_one_sync()) return;
    const auto rows = flat_divide(make_tensor(make_smem_ptr(shared.smem_A.data()), typename Whole::SmemLayoutA{}),
                                  make_tile(Int<kHalf>{}, _64{}));  // (128, 64, half, 1, stage)
    const auto tokens = make_tensor(make_smem_ptr(shared.smem_B.data()), typename Whole::SmemLayoutB{});
    const auto half = params.load_half.get_slice(_0{});
    const auto x = params.tma_load_b.get_slice(_0{});
    const auto from = half.partition_S(get<0>(inputs)(_, _, get<0>(at), _, 0));
    const auto to_gate = half.partition_D(rows(_, _, _0{}, _0{}, _));
    const auto to_up = half.partition_D(rows(_, _, _1{}, _0{}, _));
    const auto x_from =
        x.partition_S(domain_offset(make_coord(get<2>(inputs), 0, 0), get<1>(inputs)(_, _, get<1>(at), _, 0)));
    const auto to_tokens = x.partition_D(tokens);
    CUTLASS_PRAGMA_NO_UNROLL
    for (; count > 0; --count, ++step, ++to) {
      pipeline.producer_acquire(to);
      auto& arrived = *pipeline.producer_get_barrier(to);
      const int stage = to.index();
      copy(params.load_half.with(get<0>(maps), arrived, 0), from(_, _, _, *step), to_gate(_, _, _, stage));
      copy(params.load_half.with(get<1>(maps), arrived, 0), from(_, _, _, *step), to_up(_, _, _, stage));
      copy(params.tma_load_b.with(arrived, 0), x_from(_, _, _, *step), to_tokens(_, _, _, stage));
    }
  }

  CUTLASS_DEVICE auto tensormaps_init(const Params& params, TensorMapStorage& shared, int32_t count,
                                      int32_t index) const {
    auto* const maps = static_cast<TmaDescriptor*>(params.tensormaps);
    if (cute::elect_one_sync()) {
      const auto words = [](auto pointer) { return recast<uint128_t>(make_tensor(pointer, _1{}, _1{})); };
      copy(words(params.load_half.get_tma_descriptor()), words(make_smem_ptr(&shared.smem_tensormap_A)));
      copy(words(params.load_half.get_tma_descriptor()), words(make_smem_ptr(&shared.smem_tensormap_B)));
    }
    __syncwarp();
    return cute::make_tuple(maps + index, maps + index + count);
  }
  template <class Maps, class Problem>
  CUTLASS_DEVICE void tensormaps_perform_update(TensorMapStorage& shared, const Params& params, const Maps&,
                                                const Problem&, int32_t expert) {
    if (cute::elect_one_sync()) this->tensormaps_replace_global_address(shared, params, expert);
  }
};

// Stores a tile from the threads' accumulators.
struct Epilogue {
  using DispatchPolicy = cutlass::epilogue::PtrArrayNoSmemWarpSpecialized;
  using ElementC = void;
  using ElementD = Element;
  using InternalStrideC = Stride<_1, int64_t, _0>;
  using InternalStrideD = InternalStrideC;
  using StrideC = InternalStrideC*;
  using StrideD = InternalStrideD*;
  struct SharedStorage {};
  struct Arguments {
    gpu::GateUpStore store;
    const int32_t* expert_offsets;
  };
  using Params = Arguments;

  template <class Problem>
  static Params to_underlying_arguments(const Problem&, const Arguments& arguments, void*) {
    return arguments;
  }
  template <class Problem>
  static size_t get_workspace_size(const Problem&, const Arguments&, int) {
    return 0;
  }
  template <class Problem>
  static cutlass::Status initialize_workspace(const Problem&, const Arguments&, void*, cudaStream_t,
                                              cutlass::CudaHostAdapter*) {
    return cutlass::Status::kSuccess;
  }
  template <class Problem>
  static bool can_implement(const Problem&, const Arguments&) {
    return true;
  }

  CUTLASS_HOST_DEVICE explicit Epilogue(const Params& params_) : params(params_) {}

  // The first mode of `sums` has two tokens, two features 8 apart, and every 8 tokens; the second has gate and up.
  template <class Problem, class Tile, class Coordinates, class Engine, class Layout, class Mma, class Residue>
  CUTLASS_DEVICE void operator()(const Problem& problem, const Tile&, const Coordinates& at,
                                 const cute::Tensor<Engine, Layout>& sums, const Mma& mma, const Residue&, int thread,
                                 char*) const {
    constexpr int kTokens = size<1>(Tile{});
    static_assert(size(Layout{}) == kTokens && size<0>(Layout{}) == kTokens / 2 && size<1>(Layout{}) == 2);
    const auto first = mma.get_slice(thread).partition_C(make_identity_tensor(take<0, 2>(Tile{})))(0);
    const int feature = get<0>(at) * kHalf + get<0>(first) / 16 * 16;
    const int token = get<1>(at) * kTokens;
    const int64_t begin = params.expert_offsets ? params.expert_offsets[get<3>(at)] : 0;
    params.store.template store<kTokens>(feature, begin + token, get<1>(problem) - token, [&](bool up, int n, int i) {
      return sums(make_coord(i % 2, i / 2, n), static_cast<int>(up), 0);
    });
  }

 private:
  Params params;
};

template <class Shape>
struct Arrays {
  Shape* shapes;
  const Element **gates, **ups;
};

template <class Shape>
__global__ void describe(const Arrays<Shape> arrays, const GroupedProblem problem,
                         const __grid_constant__ GroupedWeights gates, const __grid_constant__ GroupedWeights ups) {
  for (int e = threadIdx.x; e < gates.num_experts; e += blockDim.x) {
    const int rows = static_cast<int>(first_row(problem, e + 1) - first_row(problem, e));
    const int tiles = static_cast<int>((gates.out_features + kHalf - 1) / kHalf);
    arrays.shapes[e] = {tiles * 2 * kHalf, rows, static_cast<int>(gates.in_features)};
    arrays.gates[e] = static_cast<const Element*>(gates.data[e]);
    arrays.ups[e] = static_cast<const Element*>(ups.data[e]);
  }
}

}  // namespace gate_up

template <int TileTokens>
void run_gate_up_sm90(const GroupedProblem& p, const GroupedWeights& gates, const GroupedWeights& ups,
                      GpuDevice& device, const Buffer& workspace) {
  using namespace gate_up;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<
      cutlass::gemm::GroupProblemShape<Shape<int, int, int>>, TwoMatrices<TileTokens>,
      cutlass::epilogue::collective::detail::Sm90TmaWarpSpecializedAdapter<Epilogue>>;
  using ProblemShape = typename Kernel::ProblemShape::UnderlyingProblemShape;

  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  GroupedLayout layout(workspace.data(), workspace.bytes());
  Arrays<ProblemShape> arrays;
  layout.place(arrays.shapes, gates.num_experts);
  layout.place(arrays.gates, gates.num_experts);
  layout.place(arrays.ups, gates.num_experts);
  describe<ProblemShape><<<1, 256, 0, stream>>>(arrays, p, gates, ups);
  check_launch(stream);

  typename Kernel::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
  arguments.problem_shape = {gates.num_experts, arrays.shapes, nullptr};
  auto& mainloop = arguments.mainloop;
  mainloop.ptr_A = arrays.gates;
  mainloop.ptr_B = arrays.ups;
  mainloop.matrix = static_cast<const Element*>(gates.data[0]);
  mainloop.x = static_cast<const Element*>(p.x);
  get<0>(mainloop.stride) = gates.in_features;
  get<0>(mainloop.x_stride) = p.x_stride;
  mainloop.num_rows = static_cast<int>(p.max_rows);
  mainloop.out_features = static_cast<int>(gates.out_features);
  mainloop.depth = static_cast<int>(gates.in_features);
  mainloop.expert_offsets = p.expert_offsets;
  arguments.epilogue = {{static_cast<bf16*>(p.out), p.out_stride, static_cast<int32_t>(gates.out_features)},
                        p.expert_offsets};
  arguments.hw_info.sm_count = device.num_multiprocessors();
  LC_CHECK(Kernel::can_implement(arguments), "gate and up [", gates.out_features, ", ", gates.in_features, "]");
  LC_CHECK(static_cast<int64_t>(Kernel::get_workspace_size(arguments)) <= layout.remaining());
  const typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, layout.rest());
  CUTLASS_CHECK(Kernel::initialize_workspace(arguments, layout.rest(), stream));

  launch_sm90<Kernel>(device, params, Overlap::no);
}

}  // namespace longcat
