// What the proofs of linear layers hold results against: f64, and the chain of tensor-core products bit for bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/emulation/hopper.h"
#include "cuda/emulation/proof.h"

namespace longcat::emulation {

// Rows of bf16 and what they are multiplied by.
struct Products {
  std::vector<double> exact;     // [rows, columns]
  std::vector<float> chains[2];  // of each Arithmetic, one accumulator and k ascending
};

// x [rows, depth] times w [columns, depth], transposed.
inline Products products_of(const std::vector<bf16>& x, const std::vector<bf16>& w, int64_t depth) {
  const int64_t rows = static_cast<int64_t>(x.size()) / depth, columns = static_cast<int64_t>(w.size()) / depth;
  const auto factors = [](const std::vector<bf16>& of) {
    std::vector<HopperFactor> all;
    all.reserve(of.size());
    for (const bf16 value : of) all.push_back(hopper_factor(value));
    return all;
  };
  const std::vector<HopperFactor> x_factors = factors(x), w_factors = factors(w);
  Products all;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column) {
      const size_t a = static_cast<size_t>(row * depth), b = static_cast<size_t>(column * depth);
      double exact = 0;
      float plain = 0, hopper = 0;
      for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
        exact += double{to_float(x[a + k])} * to_float(w[b + k]);
        plain += to_float(x[a + k]) * to_float(w[b + k]);
        if (k % 16 == 0) hopper = hopper_dot(&w_factors[b + k], &x_factors[a + k], hopper);
      }
      all.exact.push_back(exact);
      all.chains[static_cast<int>(Arithmetic::plain)].push_back(plain);
      all.chains[static_cast<int>(Arithmetic::hopper)].push_back(hopper);
    }
  return all;
}

inline float as_float(float value) { return value; }
inline float as_float(bf16 value) { return to_float(value); }

// The worst row_error() of [rows, columns]; infinity where a bit differs from `chain`.
template <class Out>
double error_of(const std::vector<Out>& found, const std::vector<Out>& chain, const std::vector<double>& exact,
                int64_t columns) {
  double worst = 0;
  for (size_t first = 0; first < found.size(); first += static_cast<size_t>(columns)) {
    std::vector<float> row;
    for (size_t i = first; i < first + static_cast<size_t>(columns); ++i) row.push_back(as_float(found[i]));
    const double error = row_error(row.data(), &exact[first], columns);
    if (std::isnan(error)) return error;
    worst = std::max(worst, error);
  }
  if (std::memcmp(found.data(), chain.data(), found.size() * sizeof(Out)) != 0)
    return std::numeric_limits<double>::infinity();
  return worst;
}

template <class Out>
Out rounded_to(float value) {
  if constexpr (sizeof(Out) == 2) {
    return to_bf16(value);
  } else {
    return value;
  }
}

// Of silu(gate) * up in bf16, from the accumulators and the exact sums. Gate, up and product are each rounded by 2^-8.
inline Outcome silu_outcome(const std::vector<bf16>& found, const std::vector<float>& gates,
                            const std::vector<float>& ups, const std::vector<double>& exact_gates,
                            const std::vector<double>& exact_ups, int64_t columns) {
  constexpr double kTolerance = 1.5e-2;
  std::vector<double> exact;
  std::vector<bf16> chain;
  for (size_t i = 0; i < found.size(); ++i) {
    const float gate = to_float(to_bf16(gates[i])), up = to_float(to_bf16(ups[i]));
    chain.push_back(to_bf16(gate / (1 + expf(-gate)) * up));
    exact.push_back(exact_gates[i] / (1 + std::exp(-exact_gates[i])) * exact_ups[i]);
  }
  return {error_of(found, chain, exact, columns), kTolerance, hash_of(found)};
}

}  // namespace longcat::emulation
