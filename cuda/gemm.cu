// Linear layers: the choice between the CUTLASS kernels (gemm/) and the plain kernel, and the plain kernel itself.
//
// Plain: a warp adds one output element, so any shape and any pair of formats works and no result depends on how many
// rows there are. It reads the weights once a row of x (T * out * in elements through L2) and is meant for shapes that
// TMA cannot address, for f32, and for the emulation.
#include <algorithm>

#include "cuda/block.h"
#include "cuda/cuda_ops.h"
#include "cuda/gemm/gemm.h"
#include "cuda/matrix.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::Matrix;
using gpu::View;

// out[t, h, o] = (out[t, h, o] * add + x[t, h] . W[h * out_dim + o]) * scale.
struct PlainLinear {
  static constexpr int kThreads = 256;
  static constexpr int64_t kTile = 64;  // outputs of a block
  View out, x;
  Matrix weight;
  int64_t num_heads, out_dim, tiles;
  bool add;
  float scale;

  LC_HD void operator()(const Block& block) const {
    const int64_t first = block.index % tiles * kTile, head = block.index / tiles % num_heads;
    const int64_t t = block.index / tiles / num_heads;
    const int64_t count = out_dim - first < kTile ? out_dim - first : kTile;
    const int64_t from = t * x.stride0 + head * x.stride1, to = t * out.stride0 + head * out.stride1 + first;
    const int64_t row = head * out_dim + first;
    block.dots(
        count, weight.in_features, [&](int64_t o, int64_t k) { return x.get(from + k) * weight.get(row + o, k); },
        [&](int64_t o, float sum) { out.set(to + o, (add ? out.get(to + o) + sum : sum) * scale); });
  }
};

// out[row] = x[row] W_e^T for the rows [offsets[e], offsets[e + 1]) of every expert e; rows behind the last are left.
struct PlainGroupedLinear {
  static constexpr int kThreads = 256;
  static constexpr int64_t kTile = 64;
  View out, x;
  GroupedWeights weights;
  const int32_t* offsets;
  int64_t tiles;

  LC_HD void operator()(const Block& block) const {
    const int64_t row = block.index / tiles, first = block.index % tiles * kTile;
    if (row >= offsets[weights.num_experts]) return;
    const int64_t expert = expert_of_row(offsets, weights.num_experts, row);
    const Matrix weight = weights.matrix(expert);
    const int64_t count = weight.out_features - first < kTile ? weight.out_features - first : kTile;
    block.dots(
        count, weight.in_features,
        [&](int64_t o, int64_t k) { return x.get(row * x.stride0 + k) * weight.get(first + o, k); },
        [&](int64_t o, float sum) { out.set(row * out.stride0 + first + o, sum); });
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

void CudaOps::linear(Tensor out, Tensor x, const Weight& weight) { gemm(out, x, weight, false, 1); }

void CudaOps::gemm(Tensor out, Tensor x, const Weight& weight, bool add, float scale) {
  LC_CHECK(x.size(1) == weight.in_features && out.size(1) == weight.out_features && x.size(0) == out.size(0), "linear ",
           out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ", weight.in_features, "]");
  const GemmProblem problem = dense_problem(out, x, weight, add, scale);
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
                          .scale = scale});
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
                          .scale = 1});
}

void CudaOps::grouped_linear(Tensor out, Tensor x, Tensor expert_offsets, std::span<const Weight> weights) {
  const GroupedWeights grouped(weights);
  const GroupedProblem problem = grouped_problem(out, x, expert_offsets);
  if (const GemmChoice choice = choose_grouped_gemm(problem, grouped, device_->compute_capability());
      choice.path != GemmPath::plain)
    return run_grouped_gemm(choice, problem, grouped, *device_, workspace());
  const int64_t tiles = tiles_of(grouped.out_features);
  gpu::launch(*device_, x.size(0) * tiles, 0,
              PlainGroupedLinear{.out = View(out),
                                 .x = View(x),
                                 .weights = grouped,
                                 .offsets = expert_offsets.data<int32_t>(),
                                 .tiles = tiles});
}

}  // namespace longcat
