// Rounds floats to integers with one scale, for kernel files.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/simd/vec.h"

namespace longcat::cpu {

constexpr float kTiny = 1e-30f;  // smaller magnitudes are rounded to 0, because their inverse might overflow

// values[k] = scale * integers[k], with integers of magnitude `levels` or less. Returns the scale, NaN when a value is
// not finite.
template <class Integer>
LC_INLINE float round_to_levels(Integer* integers, const float* values, int64_t n, float levels) {
  typedef Integer Integers __attribute__((vector_size(vec::kLanes * sizeof(Integer))));
  constexpr float kLargest = std::numeric_limits<float>::max(), kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kMagic = 0x1.8p23f;  // adding and subtracting it rounds a small number
  const auto tail = [&](int64_t k) {   // fewer values than lanes, filled with zeros
    float filled[vec::kLanes] = {};
    std::memcpy(filled, values + k, static_cast<size_t>(n - k) * sizeof(float));
    return vec::load(filled);
  };
  const auto lanes = [&](int64_t k) { return k + vec::kLanes <= n ? vec::load(values + k) : tail(k); };
  vec::f32x8 largest_lanes{};
  vec::i32x8 finite_lanes = vec::i32x8{} - 1;
  for (int64_t k = 0; k < n; k += vec::kLanes) {
    const vec::f32x8 magnitude = vec::abs(lanes(k));
    largest_lanes = vec::max(magnitude, largest_lanes);
    finite_lanes &= magnitude <= kLargest;
  }
  float largest = 0;
  bool finite = true;
  for (int lane = 0; lane < vec::kLanes; ++lane) {
    largest = vec::most(largest, largest_lanes[lane]);
    finite = finite && finite_lanes[lane];
  }
  const float inverse = finite && largest > kTiny ? levels / largest : 0;
  for (int64_t k = 0; k < n; k += vec::kLanes) {
    const vec::f32x8 scaled = inverse > 0 ? lanes(k) * inverse : vec::f32x8{};
    const Integers rounded =
        __builtin_convertvector(__builtin_convertvector((scaled + kMagic) - kMagic, vec::i32x8), Integers);
    std::memcpy(integers + k, &rounded, static_cast<size_t>(vec::least<int64_t>(vec::kLanes, n - k)) * sizeof(Integer));
  }
  return finite ? largest / levels : kNan;
}

}  // namespace longcat::cpu
