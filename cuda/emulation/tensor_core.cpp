#include "cuda/emulation/tensor_core.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/dtype.h"
#include "cuda/emulation/hopper.h"

namespace longcat::emulation {

namespace {

constexpr int kRows = 16, kCols = 8, kDepth = 16;

struct Operands {
  bf16 a[kRows][kDepth], b[kCols][kDepth];  // b by columns
};

// The layout of the PTX ISA's section on mma.m16n8k16, as the comment of simt::mma_bf16 repeats it.
Operands gather(const uint32_t* const (&a)[32], const uint32_t* const (&b)[32]) {
  Operands all;
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 2; ++j)
        all.a[group + i % 2 * 8][pair + j + i / 2 * 8] = {static_cast<uint16_t>(a[lane][i] >> (16 * j))};
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) all.b[group][pair + j + i * 8] = {static_cast<uint16_t>(b[lane][i] >> (16 * j))};
  }
  return all;
}

bool is_finite(bf16 value) { return (value.bits & 0x7f80) != 0x7f80; }

bool all_finite(const bf16 (&values)[kDepth]) {
  for (const bf16 value : values)
    if (!is_finite(value)) return false;
  return true;
}

}  // namespace

void mma_m16n8k16(float* const (&d)[32], const uint32_t* const (&a)[32], const uint32_t* const (&b)[32],
                  Arithmetic arithmetic) {
  const Operands all = gather(a, b);
  float sums[kRows][kCols];
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2] = d[lane][i];
  if (arithmetic == Arithmetic::plain) {
    float across[kDepth][kCols];
    for (int k = 0; k < kDepth; ++k)
      for (int col = 0; col < kCols; ++col) across[k][col] = to_float(all.b[col][k]);
    for (int row = 0; row < kRows; ++row)
      for (int k = 0; k < kDepth; ++k) {
        const float x = to_float(all.a[row][k]);
        for (int col = 0; col < kCols; ++col) sums[row][col] += x * across[k][col];
      }
  } else {
    bool finite_col[kCols];
    HopperFactor cols[kCols][kDepth];
    for (int col = 0; col < kCols; ++col) {
      finite_col[col] = all_finite(all.b[col]);
      for (int k = 0; k < kDepth; ++k) cols[col][k] = hopper_factor(all.b[col][k]);
    }
    for (int row = 0; row < kRows; ++row) {
      HopperFactor factors[kDepth];
      for (int k = 0; k < kDepth; ++k) factors[k] = hopper_factor(all.a[row][k]);
      const bool finite_row = all_finite(all.a[row]);
      for (int col = 0; col < kCols; ++col) {
        float& sum = sums[row][col];
        if (finite_row && finite_col[col] && std::isfinite(sum)) {
          sum = hopper_dot(factors, cols[col], sum);
        } else {  // the model has no infinities and NaN
          for (int k = 0; k < kDepth; ++k) sum += to_float(all.a[row][k]) * to_float(all.b[col][k]);
        }
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) d[lane][i] = sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
}

void ldmatrix_8x8(uint32_t (&out)[32], const void* const (&rows)[8], bool transposed) {
  uint16_t values[8][8];
  for (int row = 0; row < 8; ++row) std::memcpy(values[row], rows[row], sizeof(values[row]));
  for (int lane = 0; lane < 32; ++lane) {
    const int slow = lane / 4, fast = 2 * (lane % 4);
    out[lane] = transposed ? values[fast][slow] | uint32_t{values[fast + 1][slow]} << 16
                           : values[slow][fast] | uint32_t{values[slow][fast + 1]} << 16;
  }
}

}  // namespace longcat::emulation
