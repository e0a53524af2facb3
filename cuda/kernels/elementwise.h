// Row kernels with several users.
#pragma once

#include <cmath>

#include "cuda/kernels/block.h"

namespace longcat::gpu {

// residual += x (unless x is empty), out = residual / rms(residual) * weight. The norm reads the sum after rounding to
// the residual's dtype. Shared memory: 4 * dim [bytes].
struct AddRmsNorm {
  static constexpr int kThreads = 256;
  View out, residual, x;  // [T, dim]
  const float* weight;    // [dim] f32
  int64_t dim;
  float eps;

  AddRmsNorm(Tensor out_, Tensor residual_, Tensor x_, Tensor weight_, float eps_)
      : out(out_), residual(residual_), x(x_), weight(weight_.data<float>()), dim(residual_.size(1)), eps(eps_) {
    LC_CHECK(out_.size(1) == dim && weight_.size(0) == dim && weight_.dtype() == DType::f32);
  }

  LC_HD void operator()(const Block& block) const {
    float* row = block.shared<float>();
    const int64_t t = block.index;
    block.for_each(dim, [&](int64_t k) {
      float value = residual.get(t * residual.stride0 + k);
      if (x.data) {
        value = residual.rounded(value + x.get(t * x.stride0 + k));
        residual.set(t * residual.stride0 + k, value);
      }
      row[k] = value;
    });
    const float squares = block.sum<float>(dim, [&](int64_t k) { return row[k] * row[k]; });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
    block.for_each(dim, [&](int64_t k) { out.set(t * out.stride0 + k, row[k] * scale * weight[k]); });
  }
};

// out = silu(gate) * up for the rows [0, *num_rows); the others are not written. Without num_rows, for all rows.
struct SiluMul {
  static constexpr int kThreads = 256;
  View out, gate, up;  // [rows, dim]
  int64_t dim;
  const int32_t* num_rows;  // [1] i32 on the device, or null
  LC_HD void operator()(const Block& block) const;
};
void silu_mul(GpuDevice& device, int64_t num_blocks, const SiluMul& kernel);

// out[i] = x[rows[i]]; num_rows as in SiluMul.
struct GatherRows {
  static constexpr int kThreads = 256;
  View out, x;          // [number of blocks, dim]; [any, dim]
  const int32_t* rows;  // [number of blocks] i32
  int64_t dim;
  const int32_t* num_rows;  // [1] i32 on the device, or null
  LC_HD void operator()(const Block& block) const;
};
void gather_rows(GpuDevice& device, int64_t num_blocks, const GatherRows& kernel);

}  // namespace longcat::gpu
