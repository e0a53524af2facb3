// The tile registers of AMX-BF16, and what kernels use of them (gemm/tile_products.h). tests/native/emulated_tiles.h
// has the same functions for any machine.
//
// A tile has up to 16 rows of up to 64 bytes. Kernels use three shapes of a product C += A B:
//   A  registers 4, 5: rows of 32 bf16 each
//   B  registers 6, 7: 16 rows, each with two adjacent k of every column
//   C  registers 0 to 3: as many rows as A and columns as B, in f32
// For each output the instruction begins two sums at 0, of even and of odd k. It adds the products in ascending k by
// fused multiply-adds, then the two sums, and their sum to C. Subnormal numbers count as 0.
#pragma once

#include <cstdint>

#include "cpu/simd/vec.h"

namespace longcat::vec {

constexpr int64_t kTileRows = 16, kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// For A of `rows` rows, and B of rows of `row_bytes` bytes.
LC_INLINE TileConfig tile_config(int64_t rows, int64_t row_bytes) {
  TileConfig config{};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) {
    const bool is_a = t == 4 || t == 5, is_b = t >= 6;
    config.row_bytes[t] = static_cast<uint16_t>(is_a ? kTileRowBytes : row_bytes);
    config.rows[t] = static_cast<uint8_t>(is_b ? kTileRows : rows);
  }
  return config;
}

#if defined(__AMX_BF16__)
// In assembly: GCC 12's intrinsics do not say which memory they read.
struct Tiles {
  static LC_INLINE void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
  static LC_INLINE void release() { asm volatile("tilerelease"); }
  template <int t>
  static LC_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  // stride [bytes] between rows.
  template <int t>
  static LC_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  static LC_INLINE void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(t) : "memory");
  }
  template <int c, int a, int b>
  static LC_INLINE void add_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};
#endif

}  // namespace longcat::vec
