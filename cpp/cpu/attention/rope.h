#pragma once

#include <cstdint>

namespace longcat::cpu {

// Rotates the pairs (2j, 2j + 1) of x [rope_dim] by angles given as cos and sin [rope_dim / 2].
void rotate_pairs(float* x, const float* cos, const float* sin, int64_t rope_dim);

}  // namespace longcat::cpu
