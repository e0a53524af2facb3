// Calls the kernel instance of a choice.
#include "cuda/gemm/instances.h"

namespace longcat {

namespace {

// Selects by tile size: 16, 64 or 128 tokens.
template <class Function>
Function* of_tile(int tokens, Function* narrow, Function* middle, Function* wide) {
  return tokens == 16 ? narrow : tokens == 64 ? middle : wide;
}

}  // namespace

void run_gemm(GemmChoice choice, const GemmProblem& problem, GpuDevice& device, const Buffer& workspace) {
  const bool f32_out = problem.out_dtype == DType::f32;
  const int tile = choice.tile_tokens;
  switch (choice.path) {
    case GemmPath::sm90_bf16:
      return (f32_out ? of_tile(tile, dense_f32_sm90_16, dense_f32_sm90_64, dense_f32_sm90_128)
                      : of_tile(tile, dense_bf16_sm90_16, dense_bf16_sm90_64, dense_bf16_sm90_128))(problem, device,
                                                                                                    workspace);
    case GemmPath::sm80_bf16:
      return (f32_out ? dense_f32_sm80 : dense_bf16_sm80)(problem, device, workspace);
    case GemmPath::sm90_fp8:  // a dense fp8 layer runs as a grouped layer with one expert
    case GemmPath::plain:
      break;
  }
  throw Error("[internal] the plain kernel is no CUTLASS kernel");
}

void run_grouped_gemm(GemmChoice choice, const GroupedProblem& problem, const GroupedWeights& weights,
                      GpuDevice& device, const Buffer& workspace) {
  switch (choice.path) {
    case GemmPath::sm90_bf16:
      return of_tile(choice.tile_tokens, grouped_bf16_sm90_16, grouped_bf16_sm90_64, grouped_bf16_sm90_128)(
          problem, weights, device, workspace);
    case GemmPath::sm90_fp8:
      return grouped_fp8_sm90(problem, weights, device, workspace);
    case GemmPath::sm80_bf16:
      return grouped_bf16_sm80(problem, weights, device, workspace);
    case GemmPath::plain:
      break;
  }
  throw Error("[internal] the plain kernel is no CUTLASS kernel");
}

void run_gate_up(GemmChoice choice, const GroupedProblem& problem, const GroupedWeights& gates,
                 const GroupedWeights& ups, GpuDevice& device, const Buffer& workspace) {
  LC_CHECK(choice.path == GemmPath::sm90_bf16, name_of(choice.path));
  of_tile(choice.tile_tokens, gate_up_bf16_sm90_16, gate_up_bf16_sm90_64, gate_up_bf16_sm90_128)(problem, gates, ups,
                                                                                                 device, workspace);
}

}  // namespace longcat
