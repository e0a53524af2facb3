#include "tests/native/emulated_tiles.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/dtype.h"

namespace longcat {

namespace {

// Numbers below the normal ones count as 0.
float without_subnormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// a * b + c, rounded once, ties to even. The processor flushes a result that is too small when rounded to 24 bits at
// any exponent. So the interval just below the smallest normal number is flushed too, though fmaf rounds it up.
float fused(float a, float b, float c) {
  a = without_subnormal(a);
  b = without_subnormal(b);
  const float result = without_subnormal(std::fmaf(a, b, c));
  if (std::fabs(result) == 0x1p-126f && std::fabs(std::fma(double{a}, b, c)) < 0x1p-126 - 0x1p-151)
    return std::copysign(0.0f, result);
  return result;
}

// Sums of normal numbers are exact where they are small.
float sum(float a, float b) { return without_subnormal(without_subnormal(a) + without_subnormal(b)); }

float value_of(const uint8_t* bf16_bytes) {
  bf16 stored;
  std::memcpy(&stored, bf16_bytes, 2);
  return to_float(stored);
}

std::atomic<int64_t> all_configured = 0, all_released = 0, all_faults = 0;

}  // namespace

TileCounts tile_counts() { return {all_configured, all_released, all_faults}; }

TileMachine& tile_machine() {
  thread_local TileMachine machine;
  return machine;
}

void TileMachine::refuse(const std::string& why) {
  if (!fault.empty()) return;
  fault = why;
  ++all_faults;
}

void TileMachine::configure(const vec::TileConfig& config) {
  static constexpr uint8_t kZeros[sizeof(config.reserved)] = {};
  clear();
  if (config.palette != 1 || config.start_row != 0 || std::memcmp(config.reserved, kZeros, sizeof(kZeros)) != 0)
    return refuse("ldtilecfg: a palette other than 1, a start row or a reserved byte");
  for (int t = 0; t < 16; ++t) {
    const int64_t rows = config.rows[t], row_bytes = config.row_bytes[t];
    const bool is_tile = t < 8 && rows > 0 && rows <= 16 && row_bytes > 0 && row_bytes <= 64 && row_bytes % 4 == 0;
    if (!is_tile && (rows != 0 || row_bytes != 0))
      return refuse("ldtilecfg: tile " + std::to_string(t) + " has a shape that no tile has");
    if (!is_tile) continue;
    rows_[t] = rows;
    row_bytes_[t] = row_bytes;
  }
  configured_ = true;
  ++num_configured;
  ++all_configured;
}

void TileMachine::release() {
  clear();
  ++all_released;
}

void TileMachine::clear() {
  configured_ = false;
  std::fill_n(rows_, 8, 0);
  std::fill_n(row_bytes_, 8, 0);
  std::memset(bytes_, 0, sizeof(bytes_));
}

bool TileMachine::has(int tile, const char* instruction) {
  if (!configured_ || tile >= 8 || rows_[tile] == 0)
    refuse(std::string(instruction) + ": tile " + std::to_string(tile) + " is not configured");
  return fault.empty();
}

void TileMachine::zero(int tile) {
  if (has(tile, "tilezero")) std::memset(bytes_[tile], 0, sizeof(bytes_[tile]));
}

void TileMachine::load(int tile, const void* from, int64_t stride) {
  if (!has(tile, "tileloadd")) return;
  std::memset(bytes_[tile], 0, sizeof(bytes_[tile]));
  for (int64_t r = 0; r < rows_[tile]; ++r)
    std::memcpy(bytes_[tile][r], static_cast<const char*>(from) + r * stride, static_cast<size_t>(row_bytes_[tile]));
}

void TileMachine::store(int tile, void* to, int64_t stride) {
  if (!has(tile, "tilestored")) return;
  for (int64_t r = 0; r < rows_[tile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, bytes_[tile][r], static_cast<size_t>(row_bytes_[tile]));
}

void TileMachine::add_product(int c, int a, int b) {
  if (!has(c, "tdpbf16ps") || !has(a, "tdpbf16ps") || !has(b, "tdpbf16ps")) return;
  if (c == a || c == b || a == b || rows_[c] != rows_[a] || row_bytes_[c] != row_bytes_[b] ||
      row_bytes_[a] / 4 != rows_[b])
    return refuse("tdpbf16ps: the shapes do not fit, or a register is named twice");
  ++num_products;
  const int64_t pairs = row_bytes_[a] / 4, columns = row_bytes_[c] / 4;
  for (int64_t m = 0; m < rows_[c]; ++m)
    for (int64_t n = 0; n < columns; ++n) {
      float even = 0, odd = 0, before;
      for (int64_t k = 0; k < pairs; ++k) {
        const uint8_t *in_a = bytes_[a][m] + 4 * k, *in_b = bytes_[b][k] + 4 * n;
        even = fused(value_of(in_a), value_of(in_b), even);
        odd = fused(value_of(in_a + 2), value_of(in_b + 2), odd);
      }
      std::memcpy(&before, bytes_[c][m] + 4 * n, 4);
      const float after = sum(before, sum(even, odd));
      std::memcpy(bytes_[c][m] + 4 * n, &after, 4);
    }
}

}  // namespace longcat
