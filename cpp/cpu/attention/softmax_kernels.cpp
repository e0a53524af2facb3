#include "cpu/attention/softmax_kernels.h"

#include "cpu/simd/vec.h"

namespace longcat::cpu {

namespace {

void add_scores(float* scores, int64_t num_keys, int64_t lanes, float* max, float* sum, float* keep) {
  for (int64_t lane = 0; lane < lanes; lane += vec::kLanes) {
    const vec::f32x8 before = vec::load(max + lane);
    vec::f32x8 largest = before, added{};
    for (int64_t s = 0; s < num_keys; ++s) largest = vec::max(vec::load(scores + s * lanes + lane), largest);
    for (int64_t s = 0; s < num_keys; ++s) {
      const vec::f32x8 weight = vec::exp(vec::load(scores + s * lanes + lane) - largest);
      vec::store(scores + s * lanes + lane, weight);
      added += weight;
    }
    const vec::f32x8 kept = vec::exp(before - largest);
    vec::store(keep + lane, kept);
    vec::store(max + lane, largest);
    vec::store(sum + lane, vec::load(sum + lane) * kept + added);
  }
}

void keep_rows(float* acc, int64_t num_rows, int64_t columns, const float* keep) {
  for (int64_t r = 0; r < num_rows; ++r)
    if (keep[r] != 1)
      for (int64_t k = 0; k < columns; ++k) acc[r * columns + k] *= keep[r];
}

}  // namespace

template <>
const SoftmaxKernels& table_of<SoftmaxKernels, Isa::LC_ISA>() {
  static constexpr SoftmaxKernels kTable{.add_scores = add_scores, .keep_rows = keep_rows};
  return kTable;
}

}  // namespace longcat::cpu
