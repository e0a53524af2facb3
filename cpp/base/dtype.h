// Element types of tensors, and the conversions to and from float (constexpr: device code calls them too).
#pragma once

#include <bit>
#include <cstdint>

namespace longcat {

enum class DType : uint8_t { f32, bf16, f16, f8_e4m3, i8, u8, i32, i64 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::f16:
      return 2;
    case DType::f8_e4m3:
      return 1;
    case DType::i8:
      return 1;
    case DType::u8:
      return 1;
    case DType::i32:
      return 4;
    case DType::i64:
      return 8;
  }
  return 0;
}

// Names as safetensors writes them.
constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::f8_e4m3:
      return "F8_E4M3";
    case DType::i8:
      return "I8";
    case DType::u8:
      return "U8";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
  }
  return "?";
}

// The upper half of an IEEE single.
struct bf16 {
  uint16_t bits;
};

constexpr float to_float(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
constexpr float to_float(float x) { return x; }

// Rounds to nearest, ties to even. NaN stays NaN: the quiet bit is set, because a payload in the low half is cut off.
constexpr bf16 to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// IEEE half to float, including subnormals, infinities and NaN.
constexpr float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

// Float to IEEE half: rounds to nearest, ties to even. Values from 65520 on become infinities, NaN stays NaN.
constexpr uint16_t to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= std::bit_cast<uint32_t>(65520.0f)) return sign | 0x7c00u;
  if (magnitude < std::bit_cast<uint32_t>(0x1p-14f)) {  // subnormal: the addition rounds to steps of 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);  // ten mantissa bits remain
  return sign | static_cast<uint16_t>((rounded >> 13) - (112u << 10));
}

// 8-bit float of the OCP: 4 exponent bits (bias 7), no infinities, NaN = S.1111.111, largest finite value 448.
constexpr float e4m3_to_float(uint8_t v) {
  const uint32_t exponent = (v >> 3) & 0xfu, mantissa = v & 7u;
  float magnitude;
  if (exponent == 0xfu && mantissa == 7u) {
    magnitude = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent != 0) {
    magnitude = std::bit_cast<float>(((exponent + 120u) << 23) | (mantissa << 20));
  } else {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  }
  return (v & 0x80u) ? -magnitude : magnitude;
}

// Rounds to nearest, ties to even. Values beyond 448 saturate, NaN stays NaN.
constexpr uint8_t to_e4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  if (magnitude != magnitude) return sign | 0x7fu;
  if (magnitude >= 448.0f) return sign | 0x7eu;
  if (magnitude < 0x1p-6f) {  // subnormal: the addition rounds to steps of 2^-9
    const float shifted = magnitude + 0x1p14f;
    return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0x1p14f));
  }
  const uint32_t m = std::bit_cast<uint32_t>(magnitude);
  const uint32_t rounded = m + 0x7ffffu + (m >> 20 & 1u);  // three mantissa bits remain
  return sign | static_cast<uint8_t>((rounded >> 20) - (120u << 3));
}

}  // namespace longcat
