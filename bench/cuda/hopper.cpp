#include "hopper.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace longcat {

namespace {

// value = significand * 2^(exponent - 23); subnormals keep the lowest exponent, as zero does.
struct Parts {
  int64_t significand;
  int exponent;
};

Parts parts_of(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const int field = static_cast<int>(bits >> 23 & 0xff);
  const int64_t fraction = bits & 0x7fffff, magnitude = field > 0 ? fraction | 0x800000 : fraction;
  return {bits >> 31 ? -magnitude : magnitude, std::max(field, 1) - 127};
}

// Towards zero.
int64_t shifted(int64_t value, int right) { return right > 62 ? 0 : value / (int64_t{1} << right); }

float truncated(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0) : nearest;
}

}  // namespace

float hopper_dot(const bf16* a, const bf16* b, float c) {
  constexpr int kTerms = 17, kFractionalBits = 25;
  Parts terms[kTerms];  // of products: * 2^(exponent - 46)
  int largest = -126;
  for (int k = 0; k < 16; ++k) {
    const Parts x = parts_of(to_float(a[k])), y = parts_of(to_float(b[k]));
    terms[k] = {x.significand * y.significand, x.exponent + y.exponent};
    if (terms[k].significand != 0) largest = std::max(largest, terms[k].exponent);
  }
  terms[16] = parts_of(c);
  if (c != 0) largest = std::max(largest, terms[16].exponent);
  terms[16].significand <<= 23;
  int64_t sum = 0;
  for (const Parts& term : terms) {
    const int right = 46 - kFractionalBits + largest - term.exponent;
    if (term.significand != 0) sum += shifted(term.significand, right);
  }
  return truncated(std::ldexp(static_cast<double>(sum), largest - kFractionalBits));
}

float hopper_chain(const bf16* a, const bf16* b, int64_t count) {
  float sum = 0;
  for (int64_t k = 0; k < count; k += 16) sum = hopper_dot(a + k, b + k, sum);
  return sum;
}

}  // namespace longcat
