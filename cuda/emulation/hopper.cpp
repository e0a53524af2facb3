#include "cuda/emulation/hopper.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace longcat {

namespace {

float truncated(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0) : nearest;
}

// value / 2^right, towards zero. |value| < 2^31.
int64_t shifted(int32_t value, int right) {
  if (right > 31) return 0;
  const int64_t magnitude = (value < 0 ? -int64_t{value} : int64_t{value}) >> right;
  return value < 0 ? -magnitude : magnitude;
}

}  // namespace

HopperFactor hopper_factor(bf16 value) {
  const int field = value.bits >> 7 & 0xff;
  const int32_t fraction = value.bits & 0x7f, magnitude = field > 0 ? fraction | 0x80 : fraction;
  return {value.bits >> 15 ? -magnitude : magnitude, std::max(field, 1) - 127};
}

float hopper_dot(const HopperFactor* a, const HopperFactor* b, float c) {
  constexpr int kFractionalBits = 25;
  int32_t products[16];  // * 2^(exponent - 14)
  int exponents[16], largest = -126;
  for (int k = 0; k < 16; ++k) {
    products[k] = a[k].significand * b[k].significand;
    exponents[k] = a[k].exponent + b[k].exponent;
    if (products[k] != 0) largest = std::max(largest, exponents[k]);
  }
  const uint32_t bits = std::bit_cast<uint32_t>(c);
  const int field = static_cast<int>(bits >> 23 & 0xff), exponent = std::max(field, 1) - 127;
  const int32_t fraction = bits & 0x7fffff, magnitude = field > 0 ? fraction | 0x800000 : fraction;
  if (magnitude != 0) largest = std::max(largest, exponent);

  constexpr int kProductBits = 14, kSingleBits = 23;  // after the point
  int64_t sum = 0;
  for (int k = 0; k < 16; ++k)
    if (products[k] != 0) sum += shifted(products[k] * (1 << (kFractionalBits - kProductBits)), largest - exponents[k]);
  if (magnitude != 0)
    sum += shifted((bits >> 31 ? -magnitude : magnitude) * (1 << (kFractionalBits - kSingleBits)), largest - exponent);
  return truncated(std::ldexp(static_cast<double>(sum), largest - kFractionalBits));
}

float hopper_dot(const bf16* a, const bf16* b, float c) {
  HopperFactor x[16], y[16];
  for (int k = 0; k < 16; ++k) {
    x[k] = hopper_factor(a[k]);
    y[k] = hopper_factor(b[k]);
  }
  return hopper_dot(x, y, c);
}

float hopper_chain(const bf16* a, const bf16* b, int64_t count) {
  float sum = 0;
  for (int64_t k = 0; k < count; k += 16) sum = hopper_dot(a + k, b + k, sum);
  return sum;
}

}  // namespace longcat
