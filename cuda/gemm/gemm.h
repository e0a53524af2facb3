// The interface to the CUTLASS kernels, and the choice of a kernel for a layer. Host code, tested without a GPU.
//
// The kernels compute out^T = W x^T. In bf16 on 9.0, W's rows fill the 128-row side of a tile and tokens the narrow
// side. In fp8 and on 8.0, tokens fill the 128 rows. One token and thousands use the same instruction family with K
// ascending (invariance contract, rule 1). The kernels of one path differ only in the number of tokens per tile.
#pragma once

#include <span>

#include "base/buffer.h"
#include "cuda/device/gpu_device.h"
#include "cuda/kernels/matrix.h"
#include "cuda/kernels/quantize.h"

namespace longcat {

enum class GemmPath { plain, sm90_bf16, sm90_fp8, sm80_bf16 };

constexpr const char* name_of(GemmPath path) {
  switch (path) {
    case GemmPath::plain:
      return "plain";
    case GemmPath::sm90_bf16:
      return "sm90_bf16";
    case GemmPath::sm90_fp8:
      return "sm90_fp8";
    case GemmPath::sm80_bf16:
      return "sm80_bf16";
  }
  return "?";
}

struct GemmChoice {
  GemmPath path = GemmPath::plain;
  int tile_tokens = 0;  // number of tokens per tile
};

// out[t, h, o] = (out[t, h, o] * add + sum_k x[t, h, k] W[h * out_features + o, k]) * scale for every head h < batch.
struct GemmProblem {
  void* out = nullptr;           // [num_tokens, batch, out_features]
  const void* x = nullptr;       // [num_tokens, batch, in_features]
  const void* weight = nullptr;  // [batch * out_features, in_features]
  int64_t num_tokens = 0, out_features = 0, in_features = 0, batch = 1;
  int64_t out_stride = 0, x_stride = 0;              // [elements] from a token to the next
  int64_t out_batch_stride = 0, x_batch_stride = 0;  // [elements] from a head to the next
  DType out_dtype = DType::f32, x_dtype = DType::f32;
  WeightFormat format = WeightFormat::f32;
  bool add = false;
  float scale = 1;
};

// Part of the workspace for a grouped kernel: descriptions of the experts, and tensor maps per multiprocessor [bytes].
constexpr int64_t kGroupedWorkspaceBytes = int64_t{1} << 20;

constexpr int kMaxExperts = 768;  // their pointers are kernel parameters: 12 of 32 KiB

// The experts' weights of one projection, by value, so that a recorded graph contains them.
struct GroupedWeights {
  explicit GroupedWeights(std::span<const Weight> experts);

  int num_experts = 0;
  WeightFormat format = WeightFormat::f32;
  int64_t out_features = 0, in_features = 0;
  const void* data[kMaxExperts];     // [num_experts] each [out_features, in_features]
  const float* scales[kMaxExperts];  // [num_experts] each [ceil(in / 128), ceil(out / 128)] f32, for fp8

  LC_HD gpu::Matrix matrix(int64_t expert) const {
    gpu::Matrix m;
    m.data = data[expert];
    m.scales = scales[expert];
    m.format = format;
    m.out_features = out_features;
    m.in_features = in_features;
    return m;
  }
};

struct GroupedProblem {
  void* out = nullptr;                      // [max_rows, out_features]
  const void* x = nullptr;                  // [max_rows, in_features]
  const float* x_scales = nullptr;          // scales of e4m3 rows, see input_scale_at (quantize.h)
  const int32_t* expert_offsets = nullptr;  // [num_experts + 1] on the device; null: one expert has all rows
  int64_t max_rows = 0;                     // rows of x and out, of which the first offsets[num_experts] are in use
  int64_t out_stride = 0, x_stride = 0;     // [elements]
  DType out_dtype = DType::f32, x_dtype = DType::f32;
};

LC_HD constexpr int64_t first_row(const GroupedProblem& p, int64_t expert) {
  return p.expert_offsets ? p.expert_offsets[expert] : expert * p.max_rows;
}

// The expert e with offsets[e] <= row < offsets[e + 1]; row < offsets[num_experts].
LC_HD constexpr int64_t expert_of_row(const int32_t* offsets, int64_t num_experts, int64_t row) {
  int64_t low = 0, high = num_experts;  // offsets[low] <= row < offsets[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] <= row ? low : high) = middle;
  }
  return low;
}

GemmProblem dense_problem(Tensor out, Tensor x, const Weight& weight, bool add, float scale);
GemmProblem per_head_problem(Tensor out, Tensor x, const Weight& weight);
GroupedProblem grouped_problem(Tensor out, Tensor x, const int32_t* expert_offsets);
GroupedProblem grouped_problem(Tensor out, const Fp8Rows& x, const int32_t* expert_offsets);

// compute_capability: 90 for 9.0. 0 without a GPU, which leaves only the plain kernel.
GemmChoice choose_gemm(const GemmProblem& problem, int compute_capability);
// Whether kernels for few tokens may serve a layer. Its rows of W are a multiple of 16, its K of 128. On 9.0 CUTLASS
// serves it for more tokens, with the same chain of products for each result.
bool fits_few_tokens(const GemmProblem& problem);
bool fits_few_tokens(const GroupedProblem& problem, const GroupedWeights& weights);
// Whether a layer's inputs are quantised on a device that multiplies fp8: whole blocks of 128 only.
bool takes_fp8_rows(WeightFormat format, int64_t out_features, int64_t in_features);
GemmChoice choose_grouped_gemm(const GroupedProblem& problem, const GroupedWeights& weights, int compute_capability);
// The kernel for silu(x G^T) * (x U^T) with both in one: the plain one or that for 9.0. Other paths have none.
GemmChoice choose_gate_up(const GroupedProblem& problem, const GroupedWeights& gates, const GroupedWeights& ups,
                          int compute_capability);

// These throw Error when the path is not built.
void run_gemm(GemmChoice choice, const GemmProblem& problem, GpuDevice& device, const Buffer& workspace);
void run_grouped_gemm(GemmChoice choice, const GroupedProblem& problem, const GroupedWeights& weights,
                      GpuDevice& device, const Buffer& workspace);
void run_gate_up(GemmChoice choice, const GroupedProblem& problem, const GroupedWeights& gates,
                 const GroupedWeights& ups, GpuDevice& device, const Buffer& workspace);

}  // namespace longcat
