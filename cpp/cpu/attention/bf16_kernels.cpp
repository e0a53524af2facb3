#include "cpu/attention/bf16_kernels.h"

#include "cpu/simd/registers.h"

namespace longcat::cpu {

namespace {

#if defined(__AVX512BF16__)
using V = vec::Register;

void pair_bf16(Bf16Pair* out, const bf16* first, const bf16* second, int64_t n) {
  constexpr bf16 kZero{};
  int64_t k = 0;
  if (second)
    for (; k + V::kLanes <= n; k += V::kLanes) V::store_pairs(out + k, V::pair_bf16(first + k, second + k));
  for (; k < n; ++k) out[k] = {first[k], second ? second[k] : kZero};
}

void pair_floats(Bf16Pair* out, const float* first, const float* second, int64_t n) {
  for (int64_t k = 0; k < n; k += V::kLanes)
    V::store_pairs(out + k, V::round_pairs(V::load(first + k), second ? V::load(second + k) : V::zero()));
}

void round(bf16* out, const float* x, int64_t n) {
  for (int64_t k = 0; k < n; k += V::kLanes) V::round_bf16_lanes(out + k, V::load(x + k));
}

constexpr Bf16Kernels kAll{.pair_bf16 = pair_bf16, .pair_floats = pair_floats, .round = round};
#else
constexpr Bf16Kernels kAll{};
#endif

}  // namespace

template <>
const Bf16Kernels& table_of<Bf16Kernels, Isa::LC_ISA>() {
  static constexpr Bf16Kernels kTable = kAll;
  return kTable;
}

}  // namespace longcat::cpu
