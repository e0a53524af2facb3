#include "limit_kernels.h"

#if defined(__x86_64__)
#include "cpu/simd/intrinsics.h"
#endif
#include "cpu/simd/vec.h"

namespace longcat::bench {

namespace {

float sum_of(const float* p, int64_t n) {
  vec::f32x8 sums[8] = {};
  for (int64_t i = 0; i + 64 <= n; i += 64)
    LC_UNROLL for (int j = 0; j < 8; ++j) sums[j] += vec::load(p + i + j * vec::kLanes);
  float lanes[vec::kLanes];
  vec::store(lanes, ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
  return lanes[0] + lanes[7];
}

#if defined(__AVX512F__)

// 16 sums: the compiler unrolls no more, and then keeps them in memory, which halves the rate.
int32_t f32(const int8_t*, int64_t count) {
  __m512 acc[16];
  for (auto& a : acc) a = _mm512_set1_ps(1);
  const __m512 x = _mm512_set1_ps(0.999f), y = _mm512_set1_ps(1e-3f);
  for (int64_t i = 0; i < count; ++i)
    for (auto& a : acc) a = _mm512_fmadd_ps(a, x, y);
  float total = 0;
  for (const auto& a : acc) total += _mm512_cvtss_f32(a);
  return static_cast<int32_t>(total);
}
constexpr LimitKernels::Rate kF32{f32, 16 * 32};

#elif defined(__AVX2__)

int32_t f32(const int8_t*, int64_t count) {
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_set1_ps(1);
  const __m256 x = _mm256_set1_ps(0.999f), y = _mm256_set1_ps(1e-3f);
  for (int64_t i = 0; i < count; ++i)
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, y);
  float total = 0;
  for (const auto& a : acc) total += _mm256_cvtss_f32(a);
  return static_cast<int32_t>(total);
}
constexpr LimitKernels::Rate kF32{f32, 12 * 16};

#else
constexpr LimitKernels::Rate kF32{};
#endif

#if defined(__AVX512VNNI__)

int32_t dot(const int8_t* w, int64_t count) {
  __m512i sum[16];
  for (auto& s : sum) s = _mm512_setzero_si512();
  const __m512i x = _mm512_loadu_si512(w);
  for (int64_t i = 0; i < count; ++i) {
    const __m512i v = _mm512_loadu_si512(w + i % 64 * 64);
    for (auto& s : sum) s = _mm512_dpbusd_epi32(s, v, x);
  }
  __m512i total = sum[0];
  for (int t = 1; t < 16; ++t) total = _mm512_add_epi32(total, sum[t]);
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(total));
}
constexpr LimitKernels::Rate kInt8{dot, 16 * 128}, kInt4 = kInt8;

#elif defined(__AVXVNNI__)

int32_t dot(const int8_t* w, int64_t count) {
  __m256i sum[12];
  for (auto& s : sum) s = _mm256_setzero_si256();
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  for (int64_t i = 0; i < count; ++i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + i % 128 * 32));
    for (auto& s : sum) s = _mm256_dpbusd_avx_epi32(s, v, x);
  }
  __m256i total = sum[0];
  for (int t = 1; t < 12; ++t) total = _mm256_add_epi32(total, sum[t]);
  return _mm256_extract_epi32(total, 0);
}
constexpr LimitKernels::Rate kInt8{dot, 12 * 64}, kInt4 = kInt8;

#elif defined(__AVX2__)

constexpr int kInputs = 4;  // registers of inputs, against a weight from the first-level cache

LC_INLINE __m256i load(const int8_t* w, int64_t i) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + i % 128 * 32));
}

LC_INLINE int32_t total(const __m256i* sum) {
  return _mm256_extract_epi32(_mm256_add_epi32(_mm256_add_epi32(sum[0], sum[1]), _mm256_add_epi32(sum[2], sum[3])), 0);
}

// Two signed factors of 8 bits need the sign trick.
int32_t int8(const int8_t* w, int64_t count) {
  __m256i sum[kInputs] = {}, x[kInputs];
  LC_UNROLL for (int t = 0; t < kInputs; ++t) x[t] = load(w, t);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < count; ++i) {
    const __m256i v = load(w, i), magnitude = _mm256_abs_epi8(v);
    LC_UNROLL for (int t = 0; t < kInputs; ++t) sum[t] =
        _mm256_add_epi32(sum[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x[t], v)), ones));
  }
  return total(sum);
}

// A block of 32 columns: 8 products are added in 16 bits, and their sum in 32.
int32_t int4(const int8_t* w, int64_t count) {
  __m256i sum[kInputs] = {}, x[kInputs];
  LC_UNROLL for (int t = 0; t < kInputs; ++t) x[t] = load(w, t);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t i = 0; i < count; i += 8) {
    __m256i block[kInputs] = {};
    LC_UNROLL for (int quad = 0; quad < 8; ++quad) {
      const __m256i v = load(w, i + quad);
      LC_UNROLL for (int t = 0; t < kInputs; ++t) block[t] = _mm256_add_epi16(block[t], _mm256_maddubs_epi16(v, x[t]));
    }
    LC_UNROLL for (int t = 0; t < kInputs; ++t) sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(block[t], ones));
  }
  return total(sum);
}
constexpr LimitKernels::Rate kInt8{int8, kInputs * 64}, kInt4{int4, kInputs * 64};

#else
constexpr LimitKernels::Rate kInt8{}, kInt4{};
#endif

}  // namespace

}  // namespace longcat::bench

template <>
const longcat::bench::LimitKernels& longcat::cpu::table_of<longcat::bench::LimitKernels, longcat::Isa::LC_ISA>() {
  static constexpr longcat::bench::LimitKernels kTable{
      .sum_of = bench::sum_of, .f32 = bench::kF32, .int8 = bench::kInt8, .int4 = bench::kInt4};
  return kTable;
}
