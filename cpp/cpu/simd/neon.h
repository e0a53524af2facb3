// NEON with dot products (Arm v8.2) as a Register (simd/registers.h): 8 lanes in two registers, one group.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "cpu/simd/vec.h"

namespace longcat::vec {

struct Neon {
  struct Floats {
    float32x4_t low, high;
  };
  struct Ints {
    int32x4_t low, high;
  };
  static constexpr int kLanes = 8, kGroups = 1;
  static constexpr bool kFewRegisters = true;  // 32, but two make a Register

  static LC_INLINE Floats zero() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }
  static LC_INLINE Floats load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static LC_INLINE void store(float* p, Floats v) {
    vst1q_f32(p, v.low);
    vst1q_f32(p + 4, v.high);
  }
  static LC_INLINE f32x8 eight(Floats v, int) {
    f32x8 all;
    std::memcpy(&all, &v.low, sizeof(v.low));
    std::memcpy(reinterpret_cast<float*>(&all) + 4, &v.high, sizeof(v.high));
    return all;
  }
  static LC_INLINE Floats broadcast(const float& x) {
    const float32x4_t v = vld1q_dup_f32(&x);
    return {v, v};
  }
  static LC_INLINE Floats multiply(Floats a, Floats b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  static LC_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
  }
  static LC_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fma(a, b, c); }
  static LC_INLINE Floats to_floats(Ints v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }

  struct Pairs {
    int16x8_t low, high;
  };
  static LC_INLINE Ints zero_ints() { return all(0); }
  static LC_INLINE Pairs load_pairs(const Int16Pair* p) { return {vld1q_s16(&p->first), vld1q_s16(&p->first + 8)}; }
  static LC_INLINE Pairs broadcast_pair(const Int16Pair& pair) {
    const int16x8_t v = vreinterpretq_s16_s32(broadcast_bytes(&pair));
    return {v, v};
  }
  static LC_INLINE void dot_pairs(Ints& sum, Pairs a, Pairs b) {
    sum = {add_pairs(sum.low, a.low, b.low), add_pairs(sum.high, a.high, b.high)};
  }

  struct Bytes {
    int8x16_t low, high;
  };
  static LC_INLINE Bytes load_bytes(const uint8_t* const* group, int64_t at) {
    const int8_t* p = reinterpret_cast<const int8_t*>(group[0] + at);
    return {vld1q_s8(p), vld1q_s8(p + 16)};
  }
  static LC_INLINE Bytes reload_bytes(const uint8_t* const* group, int64_t at) { return load_bytes(group, at); }
  static LC_INLINE Floats low_bf16(Bytes v) {
    return {vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_s8(v.low), 16)),
            vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_s8(v.high), 16))};
  }
  static LC_INLINE Floats high_bf16(Bytes v) {
    const int32x4_t mask = vdupq_n_s32(static_cast<int32_t>(0xffff0000u));
    return {vreinterpretq_f32_s32(vandq_s32(vreinterpretq_s32_s8(v.low), mask)),
            vreinterpretq_f32_s32(vandq_s32(vreinterpretq_s32_s8(v.high), mask))};
  }
  static LC_INLINE Floats scales_bf16(const uint8_t* const* group, int64_t at) {
    const uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(group[0] + at));
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(v), 16))};
  }
  static LC_INLINE Floats scales_f16(const uint8_t* const* group, int64_t at) {
    const float16x8_t v = vreinterpretq_f16_u8(vld1q_u8(group[0] + at));
    return {vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
  }
  static LC_INLINE int8x16_t broadcast4(const int8_t* p) { return vreinterpretq_s8_s32(broadcast_bytes(p)); }

  // sdot takes two signed factors.
  static LC_INLINE Ints begin_int8(int32_t) { return all(0); }
  static LC_INLINE Bytes int8_weights(Bytes w) { return w; }
  static LC_INLINE void dot_int8(Ints& sum, Bytes w, int8x16_t x) {
    sum = {vdotq_s32(sum.low, w.low, x), vdotq_s32(sum.high, w.high, x)};
  }

  static LC_INLINE Ints begin_int4(int32_t sum_by_8) { return all(-sum_by_8); }
  static LC_INLINE Bytes low_int4(Bytes w) {
    const int8x16_t mask = vdupq_n_s8(15);
    return {vandq_s8(w.low, mask), vandq_s8(w.high, mask)};
  }
  static LC_INLINE Bytes high_int4(Bytes w) {
    return {vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w.low), 4)),
            vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w.high), 4))};
  }
  static LC_INLINE void dot_int4(Ints& sum, Bytes w, int8x16_t x) { dot_int8(sum, w, x); }
  static LC_INLINE Ints end_int4(Ints sum, int32_t) { return sum; }

 private:
  static LC_INLINE Ints all(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
  static LC_INLINE int32x4_t broadcast_bytes(const void* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return vdupq_n_s32(four);
  }
  static LC_INLINE int32x4_t add_pairs(int32x4_t sum, int16x8_t a, int16x8_t b) {
    const int32x4_t first = vmull_s16(vget_low_s16(a), vget_low_s16(b)), second = vmull_high_s16(a, b);
    return vaddq_s32(sum, vpaddq_s32(first, second));
  }
};

}  // namespace longcat::vec
