// Dense bf16 linear layer for Ampere and for later devices without a path of their own. It uses cp.async, mma.sync and
// f32 accumulators in tiles of 128 tokens x 128 outputs x 32. K ascends, whatever the number of tokens.
#pragma once

#include "cutlass/cutlass.h"
//
#include "cutlass/bfloat16.h"
#include "cutlass/epilogue/thread/linear_combination.h"
#include "cutlass/gemm/device/gemm_universal.h"
//
#include "cuda/device/check.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/grouped_layout.h"

namespace longcat {

template <class Out>
void run_dense_sm80(const GemmProblem& p, GpuDevice& device, const Buffer& workspace) {
  using Element = cutlass::bfloat16_t;
  constexpr int kAlign = 8, kStages = 4;
  using Gemm = cutlass::gemm::device::GemmUniversal<
      Element, cutlass::layout::RowMajor, Element, cutlass::layout::ColumnMajor, Out, cutlass::layout::RowMajor, float,
      cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, cutlass::gemm::GemmShape<128, 128, 32>,
      cutlass::gemm::GemmShape<64, 64, 32>, cutlass::gemm::GemmShape<16, 8, 16>,
      cutlass::epilogue::thread::LinearCombination<Out, 16 / sizeof(Out), float, float>,
      cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, kStages, kAlign, kAlign>;
  const typename Gemm::Arguments arguments(
      cutlass::gemm::GemmUniversalMode::kBatched,
      {static_cast<int>(p.num_tokens), static_cast<int>(p.out_features), static_cast<int>(p.in_features)},
      static_cast<int>(p.batch), {p.scale, p.add ? p.scale : 0.0f}, p.x, p.weight, p.out, p.out, p.x_batch_stride,
      p.out_features * p.in_features, p.out_batch_stride, p.out_batch_stride, p.x_stride, p.in_features, p.out_stride,
      p.out_stride);
  LC_CHECK(static_cast<int64_t>(Gemm::get_workspace_size(arguments)) <= workspace.bytes());
  const cudaStream_t stream = static_cast<cudaStream_t>(device.stream());
  Gemm gemm;
  CUTLASS_CHECK(gemm.initialize(arguments, workspace.data(), stream));
  CUTLASS_CHECK(gemm.run(stream));
  check_launch(stream);
}

}  // namespace longcat
