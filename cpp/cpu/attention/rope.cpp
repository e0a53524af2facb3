// Rotary position embedding of interleaved pairs (2j, 2j + 1), the checkpoint's layout.
#include "cpu/attention/rope.h"

#include <cmath>

#include "cpu/cpu_ops.h"

namespace longcat {

namespace cpu {

void rotate_pairs(float* x, const float* cos, const float* sin, int64_t rope_dim) {
  for (int64_t j = 0; j < rope_dim / 2; ++j) {
    const float even = x[2 * j], odd = x[2 * j + 1];
    x[2 * j] = even * cos[j] - odd * sin[j];
    x[2 * j + 1] = odd * cos[j] + even * sin[j];
  }
}

}  // namespace cpu

// The angle is rounded to f32 before cos and sin, as in the reference. At position 300,000 the fastest pair's rounding
// error is 0.016 rad. Exact angles would differ from those of the training.
void CpuOps::rope_angles(Tensor cos, Tensor sin, Tensor positions, Tensor inv_freq, float factor) {
  const float* frequencies = inv_freq.data<float>();
  for (int64_t t = 0; t < positions.size(0); ++t) {
    const float position = static_cast<float>(positions.data<int32_t>()[t]);
    for (int64_t j = 0; j < inv_freq.size(0); ++j) {
      const float angle = position * frequencies[j];
      cos.row<float>(t)[j] = std::cos(angle) * factor;
      sin.row<float>(t)[j] = std::sin(angle) * factor;
    }
  }
}

void CpuOps::rope(Tensor x, Tensor cos, Tensor sin) {
  for (int64_t t = 0; t < x.size(0); ++t)
    for (int64_t head = 0; head < x.size(1); ++head)
      cpu::rotate_pairs(x.row<float>(t) + head * x.stride(1), cos.row<float>(t), sin.row<float>(t), x.size(2));
}

}  // namespace longcat
