// Dense bf16 linear layer for Hopper: TMA loads, WGMMA, f32 accumulators, one persistent kernel.
//
// out^T [out_features, tokens] = W [out_features, in] x^T. W fills the 128 rows of a tile (two consumer warp groups of
// 64), tokens fill its TileTokens columns. K ascends in steps of 64, with one accumulator per element. All TileTokens
// thus use the same instruction in different widths, and a token's bits do not depend on the number of tokens.
// Bound: the weights' bytes up to a few hundred tokens, then WGMMA. Shared memory: the epilogue's tile, and as many
// 64-wide stages of (128 + TileTokens) rows x 128 bytes as fit.
#pragma once

// Narrow includes: the builders' umbrella headers include every architecture and take seconds per file.
#include "cutlass/cutlass.h"
//
#include "cute/tensor.hpp"
#include "cutlass/bfloat16.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_mma_decl.hpp"
#include "cutlass/gemm/collective/sm90_mma_tma_gmma_ss_warpspecialized.hpp"
//
#include "cutlass/gemm/collective/builders/sm90_gmma_builder.inl"
#include "cutlass/gemm/kernel/gemm_universal_decl.h"
#include "cutlass/gemm/kernel/tile_scheduler.hpp"
//
#include "cutlass/gemm/kernel/sm90_gemm_tma_warpspecialized_cooperative.hpp"
//
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/launch_sm90.cuh"

namespace longcat {

template <int TileTokens, class Out>
void run_dense_sm90(const GemmProblem& p, GpuDevice& device, const Buffer& workspace) {
  using namespace cute;
  using Element = cutlass::bfloat16_t;
  using Tile = Shape<_128, Int<TileTokens>, _64>;
  using Cluster = Shape<_1, _1, _1>;
  constexpr int kAlign = 8, kAlignOut = 16 / sizeof(Out);  // number of elements in 16 bytes
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Out, cutlass::layout::ColumnMajor, kAlignOut, Out,
      cutlass::layout::ColumnMajor, kAlignOut, cutlass::epilogue::TmaWarpSpecializedCooperative>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, cutlass::layout::RowMajor, kAlign, Element,
      cutlass::layout::ColumnMajor, kAlign, float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      cutlass::gemm::KernelTmaWarpSpecializedCooperative>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue,
                                                      cutlass::gemm::PersistentScheduler>;

  const int rows = static_cast<int>(p.out_features), tokens = static_cast<int>(p.num_tokens);
  Out* out = static_cast<Out*>(p.out);
  const typename Kernel::StrideD out_stride{_1{}, p.out_stride, p.out_batch_stride};
  typename Kernel::Arguments arguments{cutlass::gemm::GemmUniversalMode::kGemm,
                                       {rows, tokens, static_cast<int>(p.in_features), static_cast<int>(p.batch)},
                                       {static_cast<const Element*>(p.weight),
                                        {p.in_features, _1{}, p.out_features * p.in_features},
                                        static_cast<const Element*>(p.x),
                                        {p.x_stride, _1{}, p.x_batch_stride}},
                                       {{}, out, out_stride, out, out_stride}};
  arguments.epilogue.thread.alpha = p.scale;
  arguments.epilogue.thread.beta = p.add ? p.scale : 0.0f;
  arguments.hw_info.sm_count = device.num_multiprocessors();
  LC_CHECK(Kernel::can_implement(arguments), "dense [", rows, ", ", p.in_features, "] of ", tokens, " tokens");
  LC_CHECK(static_cast<int64_t>(Kernel::get_workspace_size(arguments)) <= workspace.bytes());
  const typename Kernel::Params params = Kernel::to_underlying_arguments(arguments, workspace.data());

  launch_sm90<Kernel>(device, params, Overlap::yes);
}

}  // namespace longcat
