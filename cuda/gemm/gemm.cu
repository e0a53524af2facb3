// Linear layers: the plain kernel, and the choice between it and the CUTLASS kernels.
//
// Plain: a warp computes one output element, so any shape and any pair of dtypes works. No result depends on the number
// of rows. The kernel reads the weights once per row of x (T * out * in elements through L2). It serves shapes that TMA
// cannot address, f32, and the emulation. Where kernels for few tokens serve a layer, the emulation has this kernel for
// more than 64 tokens, as a chain: the products are added one after the other, as those kernels add them.
#include <algorithm>

#include "cuda/cuda_ops.h"
#include "cuda/gemm/few_tokens.h"
#include "cuda/gemm/fp8_linear.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/packed.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/matrix.h"
#include "cuda/kernels/silu.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::Matrix;
using gpu::View;

// The sum of term(0), term(1), ... term(depth - 1) in this order.
template <class Term>
LC_HD float chain_of(int64_t depth, const Term& term) {
  float sum = 0;
  for (int64_t k = 0; k < depth; ++k) sum += term(k);
  return sum;
}

// out[t, h, o] = (out[t, h, o] * add + x[t, h] . W[h * out_dim + o]) * scale.
struct PlainLinear {
  static constexpr int kThreads = 256;
  static constexpr int64_t kTile = 64;  // outputs per block
  View out, x;                          // [T, num_heads, out_dim]; [T, num_heads, in_features]
  Matrix weight;                        // [num_heads * out_dim, in_features]
  int64_t num_heads, out_dim, tiles;    // tiles: per head
  bool add, chain;
  float scale;

  LC_HD void operator()(const Block& block) const {
    const int64_t first = block.index % tiles * kTile, head = block.index / tiles % num_heads;
    const int64_t t = block.index / tiles / num_heads;
    const int64_t count = out_dim - first < kTile ? out_dim - first : kTile;
    const int64_t from = t * x.stride0 + head * x.stride1, to = t * out.stride0 + head * out.stride1 + first;
    const int64_t row = head * out_dim + first;
    const auto term = [&](int64_t o, int64_t k) { return x.get(from + k) * weight.get(row + o, k); };
    const auto store = [&](int64_t o, float sum) { out.set(to + o, (add ? out.get(to + o) + sum : sum) * scale); };
    if (!chain) return block.dots(count, weight.in_features, term, store);
    block.for_each(count,
                   [&](int64_t o) { store(o, chain_of(weight.in_features, [&](int64_t k) { return term(o, k); })); });
  }
};

// out[row] = x[row] W_e^T for the rows of every expert e. Rows after the last expert's are not written.
struct PlainGroupedLinear {
  static constexpr int kThreads = 256;
  static constexpr int64_t kTile = 64;
  GroupedProblem problem;
  GroupedWeights weights;
  int64_t tiles;
  bool chain;

  LC_HD float input(int64_t row, int64_t k, int64_t first, int64_t count) const {
    const int64_t at = row * problem.x_stride + k;
    if (problem.x_dtype == DType::f8_e4m3)
      return e4m3_to_float(static_cast<const uint8_t*>(problem.x)[at]) *
             problem.x_scales[input_scale_at(first, count, row, k / kFp8Block, problem.x_stride)];
    return problem.x_dtype == DType::bf16 ? to_float(static_cast<const bf16*>(problem.x)[at])
                                          : static_cast<const float*>(problem.x)[at];
  }

  LC_HD View out() const {
    View view;
    view.data = problem.out;
    view.dtype = problem.out_dtype;
    return view;
  }

  LC_HD void operator()(const Block& block) const {
    const int64_t row = block.index / tiles, first = block.index % tiles * kTile;
    const View view = out();
    tile(block, weights, [&](int64_t o, float sum) { view.set(row * problem.out_stride + first + o, sum); });
  }

  // Calls store(o, sum) for the block's outputs of a matrix of the row's expert. Returns their number: 0 behind the
  // last row.
  template <class Store>
  LC_HD int64_t tile(const Block& block, const GroupedWeights& matrices, const Store& store) const {
    const int64_t row = block.index / tiles, first = block.index % tiles * kTile;
    if (row >= first_row(problem, weights.num_experts)) return 0;
    const int64_t expert = problem.expert_offsets ? expert_of_row(problem.expert_offsets, weights.num_experts, row) : 0;
    const int64_t begin = first_row(problem, expert), rows = first_row(problem, expert + 1) - begin;
    const Matrix weight = matrices.matrix(expert);
    const int64_t count = weight.out_features - first < kTile ? weight.out_features - first : kTile;
    const auto term = [&](int64_t o, int64_t k) { return input(row, k, begin, rows) * weight.get(first + o, k); };
    if (chain) {
      block.for_each(count,
                     [&](int64_t o) { store(o, chain_of(weight.in_features, [&](int64_t k) { return term(o, k); })); });
    } else {
      block.dots(count, weight.in_features, term, store);
    }
    return count;
  }
};

// out[row] = silu(x[row] G_e^T) * (x[row] U_e^T). gate and up have the bits of PlainGroupedLinear, and are rounded to
// the type of the results. `gate` has all but U.
struct PlainGateUp {
  static constexpr int kThreads = PlainGroupedLinear::kThreads;
  static constexpr int64_t kTile = PlainGroupedLinear::kTile;
  static constexpr int64_t kSharedBytes = 2 * kTile * 4;
  PlainGroupedLinear gate;
  GroupedWeights ups;

  LC_HD void operator()(const Block& block) const {
    const int64_t row = block.index / gate.tiles, first = block.index % gate.tiles * kTile;
    float* const sums = block.shared<float>();  // [2, kTile]
    const int64_t count = gate.tile(block, gate.weights, [&](int64_t o, float sum) { sums[o] = sum; });
    if (count == 0) return;
    gate.tile(block, ups, [&](int64_t o, float sum) { sums[kTile + o] = sum; });
    const View out = gate.out();
    block.for_each(count, [&](int64_t o) {
      out.set(row * gate.problem.out_stride + first + o,
              gpu::silu(out.rounded(sums[o])) * out.rounded(sums[kTile + o]));
    });
  }
};

constexpr int64_t tiles_of(int64_t out_dim) { return (out_dim + PlainLinear::kTile - 1) / PlainLinear::kTile; }

}  // namespace

GroupedWeights::GroupedWeights(std::span<const Weight> experts) : num_experts(static_cast<int>(experts.size())) {
  LC_CHECK(num_experts > 0 && num_experts <= kMaxExperts, num_experts, " experts, at most ", kMaxExperts);
  format = experts[0].format;
  out_features = experts[0].out_features;
  in_features = experts[0].in_features;
  for (int e = 0; e < num_experts; ++e) {
    const Weight& w = experts[static_cast<size_t>(e)];
    LC_CHECK(w.format == format && w.out_features == out_features && w.in_features == in_features, "expert ", e);
    data[e] = w.data;
    scales[e] = w.scales;
  }
}

// Prompt tokens are multiplied in fp8, generated tokens and the head are not rounded (invariance contract, rule 2).
void CudaOps::linear(Tensor out, Tensor x, const Weight& weight) {
  if (multiplies_packed(weight)) return gpu::packed_linear(*device_, dense_problem(out, x, weight, false, 1));
  if (weight.format == WeightFormat::bf16_planes) return gpu::router_scores(*device_, out, x, weight);
  const int64_t num_tokens = x.size(0), exact = num_exact_rows(out, x, weight);
  if (exact > 0) gemm(out.first(exact), x.first(exact), weight, false, 1);
  if (exact < num_tokens) linear_fp8_rows(out.slice(0, exact, num_tokens), x.slice(0, exact, num_tokens), weight);
}

int64_t CudaOps::num_exact_rows(Tensor out, Tensor x, const Weight& weight) const {
  if (!multiplies_fp8(weight) || out.dtype() != DType::bf16) return x.size(0);
  return std::min(num_generated_, x.size(0));
}

void CudaOps::linear_fp8_rows(Tensor out, Tensor x, const Weight& weight) {
  LC_CHECK(x.size(1) == weight.in_features && out.size(1) == weight.out_features && x.size(0) == out.size(0));
  // The kernel's own part of the workspace comes first, then the rows.
  const Buffer& all = workspace();
  LC_CHECK(kGroupedWorkspaceBytes + Fp8Rows::num_bytes(x.size(0), x.size(1)) <= all.bytes(), x.size(0),
           " tokens: the workspace is too small");
  const Fp8Rows rows(static_cast<char*>(all.data()) + kGroupedWorkspaceBytes, x.size(0), x.size(1));
  quantize_rows(rows, x, nullptr, nullptr, 1);
  grouped_linear(out, rows, nullptr, {&weight, 1});
}

bool CudaOps::multiplies_fp8(const Weight& weight) const {
  return device_->multiplies_fp8() && activation_dtype_ == DType::bf16 &&
         takes_fp8_rows(weight.format, weight.out_features, weight.in_features);
}

bool CudaOps::multiplies_codes(const Weight& weight) const {
  return device_->multiplies_packed() && activation_dtype_ == DType::bf16 && gpu::fits_fp8_linear(weight);
}

void CudaOps::gemm(Tensor out, Tensor x, const Weight& weight, bool add, float scale) {
  LC_CHECK(x.size(1) == weight.in_features && out.size(1) == weight.out_features && x.size(0) == out.size(0), "linear ",
           out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ", weight.in_features, "]");
  const GemmProblem problem = dense_problem(out, x, weight, add, scale);
  if (takes_few_tokens(problem)) return gpu::few_token_linear(*device_, problem);
  if (!add && scale == 1 && multiplies_codes(weight)) return gpu::fp8_linear(*device_, {problem, weight});
  if (const GemmChoice choice = choose_gemm(problem, device_->compute_capability()); choice.path != GemmPath::plain)
    return run_gemm(choice, problem, *device_, workspace());
  gpu::launch(*device_, x.size(0) * tiles_of(weight.out_features), 0,
              PlainLinear{.out = View(out),
                          .x = View(x),
                          .weight = Matrix(weight),
                          .num_heads = 1,
                          .out_dim = weight.out_features,
                          .tiles = tiles_of(weight.out_features),
                          .add = add,
                          .chain = device_->multiplies_few_tokens() && fits_few_tokens(problem),
                          .scale = scale});
}

bool CudaOps::takes_few_tokens(const GemmProblem& problem) const {
  return problem.num_tokens <= gpu::kFewTokens && device_->multiplies_few_tokens() && fits_few_tokens(problem);
}

void CudaOps::linear_pair(Tensor out_a, Tensor out_b, Tensor x, const Weight& weight_a, const Weight& weight_b) {
  const GemmProblem a = dense_problem(out_a, x, weight_a, false, 1), b = dense_problem(out_b, x, weight_b, false, 1);
  if (multiplies_packed(weight_a) && multiplies_packed(weight_b) && weight_a.format == weight_b.format &&
      x.size(0) <= gpu::kPackedTokens && out_a.dtype() == DType::bf16 && out_b.dtype() == DType::bf16)
    return gpu::packed_pair(*device_, a, b);
  if (multiplies_codes(weight_a) && multiplies_codes(weight_b) && x.size(0) <= gpu::kFp8Tokens &&
      out_a.dtype() == DType::bf16 && out_b.dtype() == DType::bf16 && num_exact_rows(out_a, x, weight_a) == x.size(0) &&
      num_exact_rows(out_b, x, weight_b) == x.size(0))
    return gpu::fp8_pair(*device_, {a, weight_a}, {b, weight_b});
  if (out_a.dtype() != DType::bf16 || out_b.dtype() != DType::bf16 || !takes_few_tokens(a) || !takes_few_tokens(b))
    return Ops::linear_pair(out_a, out_b, x, weight_a, weight_b);
  gpu::few_token_pair(*device_, a, b);
}

// Gate and up are rounded as linear() rounds them, so the bits are those of the default.
void CudaOps::linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) {
  const GemmProblem gate = dense_problem(out, x, gate_proj, false, 1),
                    up = dense_problem(scratch, x, up_proj, false, 1);
  if (multiplies_packed(gate_proj) && multiplies_packed(up_proj) && gate_proj.format == up_proj.format &&
      x.size(0) <= gpu::kPackedTokens && out.dtype() == DType::bf16)
    return gpu::packed_gate_up(*device_, gate, up);
  if (multiplies_codes(gate_proj) && multiplies_codes(up_proj) && x.size(0) <= gpu::kFp8Tokens &&
      out.dtype() == DType::bf16 && num_exact_rows(out, x, gate_proj) == x.size(0) &&
      num_exact_rows(scratch, x, up_proj) == x.size(0))
    return gpu::fp8_gate_up(*device_, {gate, gate_proj}, {up, up_proj});
  if (out.dtype() == DType::bf16 && takes_few_tokens(gate) && takes_few_tokens(up))
    return gpu::few_token_gate_up(*device_, gate, up);
  const auto is_plain = [](const Weight& w) { return w.format == WeightFormat::bf16 || w.format == WeightFormat::f32; };
  if (is_plain(gate_proj) && is_plain(up_proj) && gate_up(out, x, nullptr, {&gate_proj, 1}, {&up_proj, 1})) return;
  Ops::linear_silu_mul(out, scratch, x, gate_proj, up_proj);
}

bool CudaOps::gate_up(Tensor out, Tensor x, const int32_t* expert_offsets, std::span<const Weight> gates,
                      std::span<const Weight> ups) {
  const GroupedProblem problem = grouped_problem(out, x, expert_offsets);
  const GroupedWeights gate(gates), up(ups);
  if (gate.out_features != up.out_features || gate.in_features != up.in_features) return false;
  const GemmChoice choice = choose_gate_up(problem, gate, up, device_->compute_capability());
  if (choice.path == GemmPath::sm90_bf16) {
    run_gate_up(choice, problem, gate, up, *device_, workspace());
    return true;
  }
  if (choice.path != GemmPath::plain) return false;
  const int64_t tiles = tiles_of(gate.out_features);
  gpu::launch(*device_, problem.max_rows * tiles, PlainGateUp::kSharedBytes,
              PlainGateUp{.gate = {.problem = problem,
                                   .weights = gate,
                                   .tiles = tiles,
                                   .chain = device_->multiplies_few_tokens() && fits_few_tokens(problem, gate)},
                          .ups = up});
  return true;
}

void CudaOps::linear_per_head(Tensor out, Tensor x, const Weight& weight) {
  const int64_t num_heads = x.size(1), out_dim = out.size(2);
  LC_CHECK(x.size(2) == weight.in_features && num_heads * out_dim == weight.out_features && out.size(1) == num_heads,
           "linear_per_head ", out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ",
           weight.in_features, "]");
  const GemmProblem problem = per_head_problem(out, x, weight);
  if (const GemmChoice choice = choose_gemm(problem, device_->compute_capability()); choice.path != GemmPath::plain)
    return run_gemm(choice, problem, *device_, workspace());
  gpu::launch(*device_, x.size(0) * num_heads * tiles_of(out_dim), 0,
              PlainLinear{.out = View(out),
                          .x = View(x),
                          .weight = Matrix(weight),
                          .num_heads = num_heads,
                          .out_dim = out_dim,
                          .tiles = tiles_of(out_dim),
                          .add = false,
                          .chain = false,
                          .scale = 1});
}

void CudaOps::grouped_linear(Tensor out, Tensor x, const int32_t* expert_offsets, std::span<const Weight> weights) {
  run_grouped(grouped_problem(out, x, expert_offsets), weights);
}

void CudaOps::grouped_linear(Tensor out, const Fp8Rows& x, const int32_t* expert_offsets,
                             std::span<const Weight> weights) {
  run_grouped(grouped_problem(out, x, expert_offsets), weights);
}

void CudaOps::run_grouped(const GroupedProblem& problem, std::span<const Weight> weights) {
  const GroupedWeights grouped(weights);
  if (const GemmChoice choice = choose_grouped_gemm(problem, grouped, device_->compute_capability());
      choice.path != GemmPath::plain)
    return run_grouped_gemm(choice, problem, grouped, *device_, workspace());
  const int64_t tiles = tiles_of(grouped.out_features);
  gpu::launch(*device_, problem.max_rows * tiles, 0,
              PlainGroupedLinear{.problem = problem,
                                 .weights = grouped,
                                 .tiles = tiles,
                                 .chain = device_->multiplies_few_tokens() && fits_few_tokens(problem, grouped)});
}

}  // namespace longcat
