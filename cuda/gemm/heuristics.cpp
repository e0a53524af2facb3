#include "cuda/gemm/gemm.h"

namespace longcat {

namespace {

// Of the kernels for few tokens: rows of W in a block, values of K in a stage, and experts in their parameters.
constexpr int64_t kFewTokenRows = 16, kFewTokenDepth = 128, kFewTokenExperts = 256;

constexpr int64_t kAlignment = 16;  // [bytes] required by TMA and cp.async for addresses and strides

bool is_aligned(const void* data, int64_t stride, int64_t batch_stride, int64_t element) {
  return reinterpret_cast<uintptr_t>(data) % kAlignment == 0 && stride * element % kAlignment == 0 &&
         batch_stride * element % kAlignment == 0;
}

GemmPath path_for(int compute_capability) {
  // sm_90a code runs on 9.0 only; sm_80 code runs on all later devices without a better path.
  if (compute_capability == 90) return GemmPath::sm90_bf16;
  return compute_capability >= 80 ? GemmPath::sm80_bf16 : GemmPath::plain;
}

// The narrowest tile that holds the tokens, so that few tokens waste little; the widest for many tokens.
int tile_tokens_for(GemmPath path, int64_t tokens) {
  if (path == GemmPath::sm80_bf16) return 128;
  return tokens <= 16 ? 16 : tokens <= 64 ? 64 : 128;
}

}  // namespace

GemmProblem dense_problem(Tensor out, Tensor x, const Weight& weight, bool add, float scale) {
  return {.out = out.raw(),
          .x = x.raw(),
          .weight = weight.data,
          .num_tokens = x.size(0),
          .out_features = weight.out_features,
          .in_features = weight.in_features,
          .batch = 1,
          .out_stride = out.stride(0),
          .x_stride = x.stride(0),
          .out_dtype = out.dtype(),
          .x_dtype = x.dtype(),
          .format = weight.format,
          .add = add,
          .scale = scale};
}

GemmProblem per_head_problem(Tensor out, Tensor x, const Weight& weight) {
  return {.out = out.raw(),
          .x = x.raw(),
          .weight = weight.data,
          .num_tokens = x.size(0),
          .out_features = out.size(2),
          .in_features = weight.in_features,
          .batch = x.size(1),
          .out_stride = out.stride(0),
          .x_stride = x.stride(0),
          .out_batch_stride = out.stride(1),
          .x_batch_stride = x.stride(1),
          .out_dtype = out.dtype(),
          .x_dtype = x.dtype(),
          .format = weight.format};
}

GroupedProblem grouped_problem(Tensor out, Tensor x, const int32_t* expert_offsets) {
  return {.out = out.raw(),
          .x = x.raw(),
          .expert_offsets = expert_offsets,
          .max_rows = x.size(0),
          .out_stride = out.stride(0),
          .x_stride = x.stride(0),
          .out_dtype = out.dtype(),
          .x_dtype = x.dtype()};
}

GroupedProblem grouped_problem(Tensor out, const Fp8Rows& x, const int32_t* expert_offsets) {
  LC_CHECK(out.size(0) == x.num_rows);
  return {.out = out.raw(),
          .x = x.data,
          .x_scales = x.scales,
          .expert_offsets = expert_offsets,
          .max_rows = x.num_rows,
          .out_stride = out.stride(0),
          .x_stride = x.dim,
          .out_dtype = out.dtype(),
          .x_dtype = DType::f8_e4m3};
}

bool takes_fp8_rows(WeightFormat format, int64_t out_features, int64_t in_features) {
  return format == WeightFormat::fp8_block && out_features % kFp8Block == 0 && in_features % kFp8Block == 0;
}

// The path depends on the layer only, never on the number of tokens, because a result must not depend on the batch.
GemmChoice choose_gemm(const GemmProblem& p, int compute_capability) {
  const GemmPath path = path_for(compute_capability);
  const int64_t out_element = size_of(p.out_dtype);
  if (path == GemmPath::plain || p.format != WeightFormat::bf16 || p.x_dtype != DType::bf16 ||
      (p.out_dtype != DType::bf16 && p.out_dtype != DType::f32))
    return {};
  // no layer needs this, so there is no such kernel
  if (p.out_dtype == DType::f32 && (p.add || p.batch > 1)) return {};
  if (!is_aligned(p.x, p.x_stride, p.x_batch_stride, 2) || !is_aligned(p.weight, p.in_features, 0, 2) ||
      !is_aligned(p.out, p.out_stride, p.out_batch_stride, out_element) || p.out_features % 8 != 0)
    return {};
  return {path, tile_tokens_for(path, p.num_tokens)};
}

GemmChoice choose_grouped_gemm(const GroupedProblem& p, const GroupedWeights& w, int compute_capability) {
  const GemmPath path = path_for(compute_capability);
  if (p.x_dtype == DType::f8_e4m3) {
    if (compute_capability != 90 || p.out_dtype != DType::bf16 ||
        !takes_fp8_rows(w.format, w.out_features, w.in_features) || !is_aligned(p.x, p.x_stride, 0, 1) ||
        !is_aligned(p.out, p.out_stride, 0, 2))
      return {};
    for (int e = 0; e < w.num_experts; ++e)
      if (!is_aligned(w.data[e], w.in_features, 0, 1)) return {};
    return {GemmPath::sm90_fp8, 128};
  }
  if (path == GemmPath::plain || w.format != WeightFormat::bf16 || p.x_dtype != DType::bf16 ||
      p.out_dtype != DType::bf16 || w.out_features % 8 != 0 || w.in_features % 8 != 0)
    return {};
  if (!is_aligned(p.x, p.x_stride, 0, 2) || !is_aligned(p.out, p.out_stride, 0, 2)) return {};
  for (int e = 0; e < w.num_experts; ++e)
    if (!is_aligned(w.data[e], w.in_features, 0, 2)) return {};
  // Rows per expert in an even spread. The host does not know the real counts.
  return {path, tile_tokens_for(path, p.max_rows / w.num_experts)};
}

// Both matrices are bf16 of one shape. The tiles are those of two layers.
GemmChoice choose_gate_up(const GroupedProblem& p, const GroupedWeights& gates, const GroupedWeights& ups,
                          int compute_capability) {
  const GemmChoice choice = choose_grouped_gemm(p, gates, compute_capability);
  const GemmChoice second = choose_grouped_gemm(p, ups, compute_capability);
  return second.path == choice.path ? choice : GemmChoice{};
}

bool fits_few_tokens(const GemmProblem& p) {
  return p.batch == 1 && !p.add && p.scale == 1 && p.out_features % kFewTokenRows == 0 &&
         p.in_features % kFewTokenDepth == 0 && choose_gemm(p, 90).path == GemmPath::sm90_bf16;
}

bool fits_few_tokens(const GroupedProblem& p, const GroupedWeights& w) {
  return w.num_experts <= kFewTokenExperts && w.out_features % kFewTokenRows == 0 &&
         w.in_features % kFewTokenDepth == 0 && choose_grouped_gemm(p, w, 90).path == GemmPath::sm90_bf16;
}

}  // namespace longcat
