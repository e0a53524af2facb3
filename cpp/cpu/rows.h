#pragma once

#include <cstdint>

namespace longcat::cpu {

// y[k] += a * x[k].
void add_scaled(float* y, float a, const float* x, int64_t n);

// out = x / sqrt(mean(x^2) + eps) * weight; out may be x. All [dim].
void norm_row(float* out, const float* x, const float* weight, int64_t dim, float eps);

// out = silu(gate) * up; out may be gate. All [n].
void silu_mul_row(float* out, const float* gate, const float* up, int64_t n);

}  // namespace longcat::cpu
