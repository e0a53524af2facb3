// Row kernels with several users.
#pragma once

#include <cmath>

#include "cuda/kernels/wide.h"

namespace longcat::gpu {

// residual += x (unless x is empty), out = residual / rms(residual) * weight. The norm reads the sum after rounding to
// the residual's dtype. Shared memory: 4 * dim [bytes].
struct AddRmsNorm {
  static constexpr int kThreads = 256;
  View out, residual, x;  // [T, dim]
  const float* weight;    // [dim] f32
  int64_t dim;
  float eps;
  bool wide;

  AddRmsNorm(Tensor out_, Tensor residual_, Tensor x_, Tensor weight_, float eps_)
      : out(out_),
        residual(residual_),
        x(x_),
        weight(weight_.data<float>()),
        dim(residual_.size(1)),
        eps(eps_),
        wide(is_wide(out, dim) && is_wide(residual, dim) && is_wide(x, dim) && is_wide(weight, 0, 4)) {
    LC_CHECK(out_.size(1) == dim && weight_.size(0) == dim && weight_.dtype() == DType::f32);
  }

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    normalise(block, [&](auto count, int64_t k) { return get_values<count()>(x, t * x.stride0 + k); });
  }

  // more(count, k): the values of x from k on. Not called where x is empty.
  template <class More>
  LC_HD void normalise(const Block& block, const More& more) const {
    float* row = block.shared<float>();
    const int64_t t = block.index;
    for_each_values(block, dim, wide, [&](auto count, int64_t k) {
      auto values = get_values<count()>(residual, t * residual.stride0 + k);
      if (x.data) {
        const auto added = more(count, k);
        LC_UNROLL for (int i = 0; i < count(); ++i) values.v[i] = residual.rounded(values.v[i] + added.v[i]);
        set_values(residual, t * residual.stride0 + k, values);
      }
      set_values(row + k, values);
    });
    const float squares = block.sum<float>(dim, [&](int64_t k) { return row[k] * row[k]; });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
    for_each_values(block, dim, wide, [&](auto count, int64_t k) {
      auto values = get_values<count()>(row + k);
      const auto weights = get_values<count()>(weight + k);
      LC_UNROLL for (int i = 0; i < count(); ++i) values.v[i] = values.v[i] * scale * weights.v[i];
      set_values(out, t * out.stride0 + k, values);
    });
  }
};

// out = silu(gate) * up for the rows [0, *num_rows); the others are not written. Without num_rows, for all rows.
struct SiluMul {
  static constexpr int kThreads = 256;
  View out, gate, up;  // [rows, dim]
  int64_t dim;
  const int32_t* num_rows;  // [1] i32 on the device, or null
  bool wide = false;        // silu_mul() sets it
  LC_HD void operator()(const Block& block) const;
};
void silu_mul(GpuDevice& device, int64_t num_blocks, SiluMul kernel);

// out[i] = x[rows[i]]; num_rows as in SiluMul.
struct GatherRows {
  static constexpr int kThreads = 256;
  View out, x;          // [number of blocks, dim]; [any, dim]
  const int32_t* rows;  // [number of blocks] i32
  int64_t dim;
  const int32_t* num_rows;  // [1] i32 on the device, or null
  bool wide = false;        // gather_rows() sets it
  LC_HD void operator()(const Block& block) const;
};
void gather_rows(GpuDevice& device, int64_t num_blocks, GatherRows kernel);

}  // namespace longcat::gpu
