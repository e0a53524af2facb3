// Runs the cases of a kernel's proof: each under many seeds and both arithmetics.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "cuda/emulation/simt_emulator.h"

namespace longcat::emulation {

struct Outcome {
  double error;  // the worst, in the measure of `tolerance`; NaN fails
  double tolerance;
  uint64_t bits;  // of the results, by hash_of(): equal for all seeds of one arithmetic
};

struct Case {
  std::string name;
  std::function<Outcome(SimtEmulator&)> run;
  // Cases of one group have equal bits: the same token alone and in a batch, or with other pieces. Empty: a group of
  // its own.
  std::string group = {};
  int64_t most_conflicts = 0;  // bank conflicts [cycles]
  int resident_blocks = 0;     // at one time; 0: 1 to 4, by seed. Blocks that wait for each other must all be
};

// main() of a proof program. --seeds N (default 20); --first: end at the first failure. Prints a line a case, and for
// each failure a line "FOUND way: text", where way is value, order, bounds, conflicts or deadlock. Returns 0 if there
// is none.
int prove(int argc, char** argv, const std::vector<Case>& cases);

uint64_t hash_of_bytes(const void* data, int64_t bytes);
template <class T>
uint64_t hash_of(const std::vector<T>& values) {
  return hash_of_bytes(values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
}

// Values for inputs: standard normal, the same for one seed.
std::vector<bf16> random_bf16(int64_t count, uint64_t seed, float scale = 1);
std::vector<float> random_f32(int64_t count, uint64_t seed, float scale = 1);

// max |found - expected| / max |expected| of one row; NaN where anything is no number.
double row_error(const float* found, const double* expected, int64_t count);

}  // namespace longcat::emulation
