// C += A B for the small matrices of attention, whose operands are in the caches. A is read value by value; B and C are
// registers of adjacent columns. An element of C is one sum over ascending k, so its bits do not depend on the rest of
// the shape.
#pragma once

#include <cstdint>

#include "cpu/simd/dispatch.h"
#include "cpu/simd/vec.h"

namespace longcat::cpu {

// B and C have a multiple of this number of columns.
constexpr int64_t kTileColumns = 16;
constexpr int64_t padded_columns(int64_t n) { return (n + kTileColumns - 1) / kTileColumns * kTileColumns; }

using vec::Bf16Pair;
using vec::Int16Pair;

// Memory that is needed soon. A product prefetches a few lines of it now and then.
struct Prefetch {
  const char *next = nullptr, *end = nullptr;
  int lines_at_once = 0;

  LC_INLINE void some_lines() {
    for (int line = 0; line < lines_at_once && next < end; ++line, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// C[i][j] += sum_k A[i][k] B[k][j]. Strides in elements; A(i, k) is at a + i * a_row + k * a_column.
struct FloatProduct {
  float* c;  // [rows, columns]
  int64_t c_row;
  const float* a;  // [rows, depth]
  int64_t a_row, a_column;
  const float* b;  // [depth, columns]
  int64_t b_row;
  int64_t rows, columns, depth;
  Prefetch* beside = nullptr;  // memory to prefetch during the product, if any
};

// C[i][j] += scales[i * scales_stride] * sum_k (A[i][k].first B[k][j].first + A[i][k].second B[k][j].second). The sum
// is exact: the caller's values must keep it in 32 bits.
struct Int16Product {
  float* c;  // [rows, columns]
  int64_t c_row;
  const Int16Pair* a;  // [rows, depth]
  int64_t a_row, a_column;
  const float* scales;  // [rows]
  int64_t scales_stride;
  const Int16Pair* b;  // [depth, columns]
  int64_t b_row;
  int64_t rows, columns, depth;
  Prefetch* beside = nullptr;  // memory to prefetch during the product, if any
};

// C[i][j] += sum_k (A[i][k].first B[k][j].first + A[i][k].second B[k][j].second), added to a sum in f32 as the
// instruction of the set adds them.
struct Bf16Product {
  float* c;  // [rows, columns]
  int64_t c_row;
  const Bf16Pair* a;  // [rows, depth]
  int64_t a_row, a_column;
  const Bf16Pair* b;  // [depth, columns]
  int64_t b_row;
  int64_t rows, columns, depth;
  Prefetch* beside = nullptr;  // memory to prefetch during the product, if any
};

struct ProductKernels {
  void (*floats)(const FloatProduct& product);
  void (*bf16s)(const Bf16Product& product);  // null on sets that do not multiply bf16
  void (*int16s)(const Int16Product& product);
};

inline void multiply_add(const FloatProduct& product) { kernels<ProductKernels>().floats(product); }
inline void multiply_add(const Bf16Product& product) { kernels<ProductKernels>().bf16s(product); }
inline void multiply_add(const Int16Product& product) { kernels<ProductKernels>().int16s(product); }

}  // namespace longcat::cpu
