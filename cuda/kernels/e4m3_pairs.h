// Codes of fp8 latents as pairs of bf16, in kernels over simt.h.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

// Four e4m3 codes as bf16. NaN codes are not NaN here.
LC_HD inline Word2 bf16_of_e4m3(uint32_t codes) {
  constexpr uint32_t kTwoTo120 = 0x7b807b80;  // an exponent of bf16 is biased by 120 more
  Word2 pairs{};
  const uint32_t halves[] = {(codes << 8 & 0xff00u) | (codes << 16 & 0xff000000u),
                             (codes >> 8 & 0xff00u) | (codes & 0xff000000u)};
  LC_UNROLL for (int i = 0; i < 2; ++i) pairs.v[i] =
      mul_bf16x2((halves[i] & 0x80008000u) | ((halves[i] & 0x7f007f00u) >> 4), kTwoTo120);
  return pairs;
}
// Bit 8 i + 7: whether code i is NaN.
LC_HD inline uint32_t nan_codes(uint32_t codes) { return ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u; }

}  // namespace longcat::gpu
