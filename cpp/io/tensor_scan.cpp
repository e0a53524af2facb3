#include "io/tensor_scan.h"

#include <algorithm>
#include <cstring>

namespace longcat {
namespace {

// A float is not finite when all its exponent bits are set; without mantissa bits it is an infinity. e4m3 has no
// infinities: all bits below the sign set mean NaN.
struct Format {
  uint32_t exponent, mantissa;
};

template <class Word>
TensorScan scan(std::span<const std::byte> bytes, Format format) {
  constexpr int64_t kBlock = 4096;  // elements between two tests of the result: fits in L1, long enough for SIMD
  const Word exponent = static_cast<Word>(format.exponent);
  const std::byte* data = bytes.data();
  const int64_t count = static_cast<int64_t>(bytes.size() / sizeof(Word));
  const auto word = [&](int64_t i) {
    Word value;
    std::memcpy(&value, data + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
    return value;
  };
  TensorScan result;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    Word bits = 0, bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Word value = word(i);
      bits |= value;
      bad |= static_cast<Word>((value & exponent) == exponent);
    }
    result.all_zero &= bits == 0;
    if (!bad || format.exponent == 0) continue;
    int64_t i = begin;
    while ((word(i) & exponent) != exponent) ++i;
    result.first_non_finite = i;
    result.is_nan = format.mantissa == 0 || (word(i) & format.mantissa) != 0;
    return result;
  }
  return result;
}

}  // namespace

TensorScan scan_tensor(std::span<const std::byte> bytes, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return scan<uint32_t>(bytes, {0x7f800000u, 0x007fffffu});
    case DType::bf16:
      return scan<uint16_t>(bytes, {0x7f80u, 0x007fu});
    case DType::f16:
      return scan<uint16_t>(bytes, {0x7c00u, 0x03ffu});
    case DType::f8_e4m3:
      return scan<uint8_t>(bytes, {0x7fu, 0});
    default:
      return scan<uint8_t>(bytes, {0, 0});  // no exponent bits: all values are finite
  }
}

}  // namespace longcat
