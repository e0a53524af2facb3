// The matrices of the proofs of Fp8Linear and Fp8Wide: codes with scales, x, and the arithmetic written plainly.
#pragma once

#include <random>

#include "tests/gpu_proof/linear_reference.h"

namespace longcat::emulation {

// The rows of W whose results are proven: of two blocks of 128.
constexpr int64_t kFirstProven = 112, kProvenRows = 32;
// Of a row's largest value: a bf16 result has 2^-8. f32 sums of 21 units round each time, and their products are cut.
constexpr double kBf16Tolerance = 4e-3, kF32Tolerance = 5e-5;

struct Fp8Matrix {
  int64_t rows, depth;
  std::vector<uint8_t> codes;    // [rows, depth], then the scales [depth / 128, 2] f32 at scales_at
  int64_t scales_at;             // [bytes]
  std::vector<bf16> x;           // [tokens, depth], the same for all of one depth
  std::vector<double> exact;     // [tokens, kProvenRows]
  std::vector<float> chains[2];  // of each Arithmetic

  // num_rows: 129 to 256.
  Fp8Matrix(int64_t num_rows, int64_t k, int64_t tokens, uint64_t seed)
      : rows(num_rows), depth(k), scales_at((rows * k + 255) / 256 * 256), x(random_bf16(tokens * k, 1)) {
    std::mt19937_64 random(seed);
    for (int64_t i = 0; i < rows * depth; ++i) {
      const uint8_t code = static_cast<uint8_t>(random());
      codes.push_back((code & 0x7f) == 0x7f ? 0 : code);  // no NaN
    }
    codes.resize(static_cast<size_t>(scales_at));
    for (int64_t i = 0; i < depth / 128 * 2; ++i) {
      const float scale = 0.001f * static_cast<float>(1 + random() % 64);
      const auto* const bytes = reinterpret_cast<const uint8_t*>(&scale);
      codes.insert(codes.end(), bytes, bytes + 4);
    }
    for (int64_t token = 0; token < tokens; ++token)
      for (int64_t row = kFirstProven; row < kFirstProven + kProvenRows; ++row) add_result(token, row);
  }

  float scale(int64_t row, int64_t unit) const {
    float of_block;
    std::memcpy(&of_block, &codes[static_cast<size_t>(scales_at + (unit * 2 + row / 128) * 4)], 4);
    return of_block;
  }

  // A chain of fma(scale, product of 128 columns, sum).
  void add_result(int64_t token, int64_t row) {
    double sum = 0;
    float chain[2] = {};
    for (int64_t unit = 0; unit < depth / 128; ++unit) {
      float product[2] = {};
      for (int64_t part = 0; part < 8; ++part) {  // 16 of the columns: of each 32, the first or second four of 8
        bf16 w[16], inputs[16];
        for (int64_t k = 0; k < 16; ++k) {  // as the fragments of m16n8k16 have them
          const int64_t column = unit * 128 + part / 2 * 32 + k % 8 / 2 * 8 + part % 2 * 4 + k / 8 * 2 + k % 2;
          w[k] = to_bf16(e4m3_to_float(codes[static_cast<size_t>(row * depth + column)]));
          inputs[k] = x[static_cast<size_t>(token * depth + column)];
          sum += double{to_float(w[k])} * double{scale(row, unit)} * double{to_float(inputs[k])};
          product[static_cast<int>(Arithmetic::plain)] += to_float(w[k]) * to_float(inputs[k]);
        }
        float& hopper = product[static_cast<int>(Arithmetic::hopper)];
        hopper = hopper_dot(w, inputs, hopper);
      }
      for (int i = 0; i < 2; ++i) chain[i] = std::fma(scale(row, unit), product[i], chain[i]);
    }
    exact.push_back(sum);
    for (int i = 0; i < 2; ++i) chains[i].push_back(chain[i]);
  }
};

// Columns [first, first + count) of tokens.
template <class T>
std::vector<T> part_of(const std::vector<T>& all, int64_t first_token, int64_t tokens, int64_t first, int64_t count) {
  std::vector<T> part;
  for (int64_t t = first_token; t < first_token + tokens; ++t) {
    const auto row = all.begin() + t * kProvenRows + first;
    part.insert(part.end(), row, row + count);
  }
  return part;
}

inline const std::vector<float>& sums_of(SimtEmulator& gpu, const Fp8Matrix& in) {
  return in.chains[static_cast<int>(gpu.arithmetic())];
}

template <class Out>
std::vector<Out> rounded_all(const std::vector<float>& sums) {
  std::vector<Out> all;
  for (const float sum : sums) all.push_back(rounded_to<Out>(sum));
  return all;
}

}  // namespace longcat::emulation
