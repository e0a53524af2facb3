// Any processor as a Register (simd/registers.h): 8 lanes, one group. The comments hold for every Register.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/vec.h"

namespace longcat::vec {

struct Portable {
  using Floats = f32x8;
  using Ints = i32x8;
  static constexpr int kLanes = 8;             // values of 32 bits
  static constexpr int kGroups = kLanes / 8;   // groups of 8 outputs (ops/packed.h)
  static constexpr bool kFewRegisters = true;  // kernels then hold fewer sums at once

  static LC_INLINE Floats zero() { return Floats{}; }
  static LC_INLINE Floats load(const float* p) { return vec::load(p); }
  static LC_INLINE void store(float* p, Floats v) { vec::store(p, v); }
  static LC_INLINE f32x8 eight(Floats v, int) { return v; }  // the i-th 8 lanes
  static LC_INLINE Floats broadcast(float x) { return x - Floats{}; }
  static LC_INLINE Floats multiply(Floats a, Floats b) { return a * b; }
  // a * b + c, rounded once.
  static LC_INLINE Floats fma(Floats a, Floats b, Floats c) {
    LC_UNROLL for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
  }
  // The same where that is fast. Here it may round twice.
  static LC_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static LC_INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

  // sum + a.first * b.first + a.second * b.second, exact.
  static LC_INLINE Ints zero_ints() { return Ints{}; }
  static LC_INLINE Ints load_pairs(const Int16Pair* p) { return load_ints(p); }
  static LC_INLINE Ints broadcast_pair(const Int16Pair& pair) { return broadcast_bytes(&pair); }
  static LC_INLINE void dot_pairs(Ints& sum, Ints a, Ints b) {
    sum += (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
  }

  // 32 bytes of each of kGroups groups, at `at` [bytes]: 4 bytes in each lane, the first in the low bits.
  // reload_bytes() loads them once more where registers are scarce.
  using Bytes = Ints;
  static LC_INLINE Bytes load_bytes(const uint8_t* const* group, int64_t at) { return load_ints(group[0] + at); }
  static LC_INLINE Bytes reload_bytes(const uint8_t* const* group, int64_t at) { return load_bytes(group, at); }
  // The first and the second bf16 of each lane.
  static LC_INLINE Floats low_bf16(Bytes v) { return as_floats(v << 16); }
  static LC_INLINE Floats high_bf16(Bytes v) { return as_floats(v & static_cast<int32_t>(0xffff0000u)); }
  // 8 bf16 of each group, or 8 IEEE halves. Both conversions are exact.
  static LC_INLINE Floats scales_bf16(const uint8_t* const* group, int64_t at) {
    return vec::load(reinterpret_cast<const bf16*>(group[0] + at));
  }
  static LC_INLINE Floats scales_f16(const uint8_t* const* group, int64_t at) {
    typedef uint16_t u16x8 __attribute__((vector_size(16)));
    u16x8 halves;
    std::memcpy(&halves, group[0] + at, sizeof(halves));
    const Ints bits = __builtin_convertvector(halves, Ints), magnitude = bits & 0x7fff;
    const Ints exponent = Ints{} + (112 << 23);  // added twice to infinities and NaN
    const Floats subnormal = to_floats(magnitude) * 0x1p-24f;
    Ints out = (magnitude << 13) + exponent + (magnitude >= 0x7c00 ? exponent : Ints{});
    out = magnitude < 0x400 ? as_ints(subnormal) : out;
    return as_floats(out | (bits & 0x8000) << 16);
  }
  // 4 inputs in each lane.
  static LC_INLINE Bytes broadcast4(const int8_t* p) { return broadcast_bytes(p); }

  // The exact sums of a block of 32 columns of signed weights: begin, then 8 times 4 columns. `sum_by_8` is that of the
  // InputBlock, for sets that add an offset to the weights.
  static LC_INLINE Ints begin_int8(int32_t) { return Ints{}; }
  static LC_INLINE Bytes int8_weights(Bytes w) { return w; }
  static LC_INLINE void dot_int8(Ints& sum, Bytes w, Bytes x) {
    LC_UNROLL for (int shift = 24; shift >= 0; shift -= 8) sum += (w << shift >> 24) * (x << shift >> 24);
  }

  // The exact sums of a block of 4-bit weights, which are stored as value + 8. A byte holds two of them.
  static LC_INLINE Ints begin_int4(int32_t sum_by_8) { return Ints{} - sum_by_8; }
  static LC_INLINE Bytes low_int4(Bytes w) { return w & 0x0f0f0f0f; }
  static LC_INLINE Bytes high_int4(Bytes w) { return w >> 4 & 0x0f0f0f0f; }
  static LC_INLINE void dot_int4(Ints& sum, Bytes w, Bytes x) { dot_int8(sum, w, x); }
  static LC_INLINE Ints end_int4(Ints sum, int32_t) { return sum; }

 private:
  static LC_INLINE Ints load_ints(const void* p) {
    Ints v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static LC_INLINE Ints broadcast_bytes(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return Ints{} + four;
  }
  static LC_INLINE Ints as_ints(Floats v) {
    Ints out;
    std::memcpy(&out, &v, sizeof(out));
    return out;
  }
  static LC_INLINE Floats as_floats(Ints v) {
    Floats out;
    std::memcpy(&out, &v, sizeof(out));
    return out;
  }
};

}  // namespace longcat::vec
