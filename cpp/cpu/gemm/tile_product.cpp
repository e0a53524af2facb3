#include "cpu/gemm/tile_product.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/simd/isa.h"
#include "cpu/simd/vec.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define LC_X86 1
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own avx512fintrin.h (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#define LC_AVX2 __attribute__((target("avx2,fma")))
#define LC_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#endif

namespace longcat::cpu {

namespace {

constexpr int64_t kDepthAtOnce = 64;  // between two prefetches
constexpr int64_t kPanelDepth = 192;  // rows of B that stay in the first-level cache

template <int R>
void float_tile_portable(const FloatProduct& p) {
  vec::f32x8 acc[R];
  for (int r = 0; r < R; ++r) acc[r] = vec::load(p.c + r * p.c_row);
  for (int64_t k = 0; k < p.depth; ++k)
    for (int r = 0; r < R; ++r) acc[r] += p.a[r * p.a_row + k * p.a_column] * vec::load(p.b + k * p.b_row);
  for (int r = 0; r < R; ++r) vec::store(p.c + r * p.c_row, acc[r]);
}

void int16_tile_portable(const Int16Product& p, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) {
      int32_t sum = 0;
      for (int64_t k = 0; k < p.depth; ++k) {
        const Int16Pair a = p.a[r * p.a_row + k * p.a_column], b = p.b[k * p.b_row + j];
        sum += a.first * b.first + a.second * b.second;
      }
      p.c[r * p.c_row + j] += p.scales[r * p.scales_stride] * static_cast<float>(sum);
    }
}

template <int R>
struct Portable {
  static constexpr int kColumns = vec::kLanes;
  static void multiply(const FloatProduct& p) { float_tile_portable<R>(p); }
  static void multiply(const Int16Product& p) { int16_tile_portable(p, R, kColumns); }
};

#ifdef LC_X86

LC_INLINE int32_t bits_of(Int16Pair pair) {
  int32_t bits;
  std::memcpy(&bits, &pair, 4);
  return bits;
}

template <int R>
struct Avx2 {
  static constexpr int kColumns = 16;

  LC_AVX2 static void multiply(const FloatProduct& product) {
    const FloatProduct p = product;  // a copy in registers, which no store can change
    __m256 acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < 2; ++j) acc[r][j] = _mm256_loadu_ps(p.c + r * p.c_row + 8 * j);
    for (int64_t k = 0, stop = 0; k < p.depth; ++k) {
      if (k == stop) {
        stop += kDepthAtOnce;
        if (p.beside) p.beside->some_lines();
      }
      const float* b = p.b + k * p.b_row;
      const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 a = _mm256_broadcast_ss(p.a + r * p.a_row + k * p.a_column);
        acc[r][0] = _mm256_fmadd_ps(a, b0, acc[r][0]);
        acc[r][1] = _mm256_fmadd_ps(a, b1, acc[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < 2; ++j) _mm256_storeu_ps(p.c + r * p.c_row + 8 * j, acc[r][j]);
  }

  LC_AVX2 static void multiply(const Int16Product& product) {
    const Int16Product p = product;
    __m256i acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t k = 0, stop = 0; k < p.depth; ++k) {
      if (k == stop) {
        stop += kDepthAtOnce;
        if (p.beside) p.beside->some_lines();
      }
      const __m256i* b = reinterpret_cast<const __m256i*>(p.b + k * p.b_row);
      const __m256i b0 = _mm256_loadu_si256(b), b1 = _mm256_loadu_si256(b + 1);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256i a = _mm256_set1_epi32(bits_of(p.a[r * p.a_row + k * p.a_column]));
        acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(a, b0));
        acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(a, b1));
        // Otherwise GCC 12 multiplies for all rows first and spills the sums.
        asm volatile("" : "+x"(acc[r][0]), "+x"(acc[r][1]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < 2; ++j) {
        float* c = p.c + r * p.c_row + 8 * j;
        _mm256_storeu_ps(c, _mm256_fmadd_ps(_mm256_set1_ps(p.scales[r * p.scales_stride]),
                                            _mm256_cvtepi32_ps(acc[r][j]), _mm256_loadu_ps(c)));
      }
  }
};

template <int R, int N>
struct Avx512 {
  static constexpr int kColumns = 16 * N;

  LC_AVX512 static void multiply(const FloatProduct& product) {
    const FloatProduct p = product;
    __m512 acc[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) acc[r][j] = _mm512_loadu_ps(p.c + r * p.c_row + 16 * j);
    for (int64_t k = 0, stop = 0; k < p.depth; ++k) {
      if (k == stop) {
        stop += kDepthAtOnce;
        if (p.beside) p.beside->some_lines();
      }
      __m512 b[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) b[j] = _mm512_loadu_ps(p.b + k * p.b_row + 16 * j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512 a = _mm512_set1_ps(p.a[r * p.a_row + k * p.a_column]);
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) acc[r][j] = _mm512_fmadd_ps(a, b[j], acc[r][j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) _mm512_storeu_ps(p.c + r * p.c_row + 16 * j, acc[r][j]);
  }

  LC_AVX512 static void multiply(const Int16Product& product) {
    const Int16Product p = product;
    __m512i acc[R][N];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) acc[r][j] = _mm512_setzero_si512();
    for (int64_t k = 0, stop = 0; k < p.depth; ++k) {
      if (k == stop) {
        stop += kDepthAtOnce;
        if (p.beside) p.beside->some_lines();
      }
      __m512i b[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) b[j] = _mm512_loadu_si512(p.b + k * p.b_row + 16 * j);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i a = _mm512_set1_epi32(bits_of(p.a[r * p.a_row + k * p.a_column]));
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) acc[r][j] = _mm512_dpwssd_epi32(acc[r][j], a, b[j]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        float* c = p.c + r * p.c_row + 16 * j;
        _mm512_storeu_ps(c, _mm512_fmadd_ps(_mm512_set1_ps(p.scales[r * p.scales_stride]),
                                            _mm512_cvtepi32_ps(acc[r][j]), _mm512_loadu_ps(c)));
      }
  }
};

template <int R>
using Avx512Wide = Avx512<R, 2>;
template <int R>
using Avx512Narrow = Avx512<R, 1>;

#endif

template <class Product>
using TileFunction = void (*)(const Product& product);

// The tile functions of 1 to `Most` rows.
template <class Product, template <int> class Tile, int... I>
constexpr std::array<TileFunction<Product>, sizeof...(I)> functions(std::integer_sequence<int, I...>) {
  return {static_cast<TileFunction<Product>>(Tile<I + 1>::multiply)...};
}

// Computes all whole column tiles from `column` on, and returns the first column after them. A panel of B, one register
// tile wide, stays in the cache for all rows. Rows are split evenly, so that every tile is wide enough to fill the
// pipelines.
template <template <int> class Tile, int Most, class Product>
int64_t walk(const Product& product, int64_t column) {
  static constexpr auto kFunctions = functions<Product, Tile>(std::make_integer_sequence<int, Most>());
  constexpr int64_t kColumns = Tile<1>::kColumns;
  constexpr bool kIsFloat = std::is_same_v<Product, FloatProduct>;
  const int64_t depth = kIsFloat ? std::min(kPanelDepth, product.depth) : product.depth;  // integers: one exact sum
  for (; column + kColumns <= product.columns; column += kColumns)
    for (int64_t k = 0; k < product.depth; k += depth) {
      Product tile = product;
      tile.depth = std::min(depth, product.depth - k);
      tile.b += k * product.b_row + column;
      int64_t tiles = (product.rows + Most - 1) / Most;
      for (int64_t row = 0; row < product.rows; --tiles) {
        const int64_t rows = (product.rows - row + tiles - 1) / tiles;
        tile.c = product.c + row * product.c_row + column;
        tile.a = product.a + row * product.a_row + k * product.a_column;
        if constexpr (!kIsFloat) tile.scales = product.scales + row * product.scales_stride;
        kFunctions[static_cast<size_t>(rows - 1)](tile);
        row += rows;
      }
    }
  return column;
}

// R * N sums, N registers of B and one value of A fit in the registers: 16 of AVX2, 32 of AVX-512.
template <class Product>
void multiply(const Product& product) {
#ifdef LC_X86
  if (cpu_isa() == Isa::avx512_vnni) {
    walk<Avx512Narrow, 8>(product, walk<Avx512Wide, 8>(product, 0));
    return;
  }
  if (cpu_isa() >= Isa::avx2) {
    walk<Avx2, 6>(product, 0);
    return;
  }
#endif
  walk<Portable, 2>(product, 0);
}

}  // namespace

void multiply_add(const FloatProduct& product) { multiply(product); }
void multiply_add(const Int16Product& product) { multiply(product); }

}  // namespace longcat::cpu
