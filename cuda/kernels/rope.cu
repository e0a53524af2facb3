// Rotary position embedding of interleaved pairs (2j, 2j + 1). One block per token; bound by launch time and bytes.
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/wide.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::View;

// The angle is rounded to f32 first, as on the CPU. cosf and sinf reduce it exactly, so never compile with fast math.
struct RopeAngles {
  static constexpr int kThreads = 32;
  float* cos;                // [T, half_dim]
  float* sin;                // [T, half_dim]
  const int32_t* positions;  // [T]
  const float* inv_freq;     // [half_dim]
  int64_t half_dim;
  float factor;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    block.for_each(half_dim, [&](int64_t j) {
      const float angle = static_cast<float>(positions[t]) * inv_freq[j];
      cos[t * half_dim + j] = cosf(angle) * factor;
      sin[t * half_dim + j] = sinf(angle) * factor;
    });
  }
};

struct Rope {
  static constexpr int kThreads = 256;
  View x;            // [T, num_heads, 2 * half_dim]
  const float* cos;  // [T, half_dim]
  const float* sin;  // [T, half_dim]
  int64_t num_heads, half_dim;
  bool wide;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    if (wide) return rotate<gpu::kWide>(block, t);
    rotate<2>(block, t);
  }

  // kCount: values of an access.
  template <int kCount>
  LC_HD void rotate(const Block& block, int64_t t) const {
    const int64_t pieces = 2 * half_dim / kCount;
    block.for_each(num_heads * pieces, [&](int64_t i) {
      const int64_t k = i % pieces * kCount, at = t * x.stride0 + i / pieces * x.stride1 + k;
      auto values = gpu::get_values<kCount>(x, at);
      LC_UNROLL for (int j = 0; j < kCount / 2; ++j) {
        const float c = cos[t * half_dim + k / 2 + j], s = sin[t * half_dim + k / 2 + j];
        const float even = values.v[2 * j], odd = values.v[2 * j + 1];
        values.v[2 * j] = even * c - odd * s;
        values.v[2 * j + 1] = odd * c + even * s;
      }
      gpu::set_values(x, at, values);
    });
  }
};

}  // namespace

void CudaOps::rope_angles(Tensor cos, Tensor sin, Tensor positions, Tensor inv_freq, float factor) {
  gpu::launch(*device_, positions.size(0), 0,
              RopeAngles{.cos = cos.data<float>(),
                         .sin = sin.data<float>(),
                         .positions = positions.data<int32_t>(),
                         .inv_freq = inv_freq.data<float>(),
                         .half_dim = inv_freq.size(0),
                         .factor = factor});
}

void CudaOps::rope(Tensor x, Tensor cos, Tensor sin) {
  LC_CHECK(cos.size(1) == x.size(2) / 2 && cos.is_contiguous());
  gpu::launch(*device_, x.size(0), 0,
              Rope{.x = View(x),
                   .cos = cos.data<float>(),
                   .sin = sin.data<float>(),
                   .num_heads = x.size(1),
                   .half_dim = x.size(2) / 2,
                   .wide = gpu::is_wide(View(x), x.size(2))});
}

}  // namespace longcat
