#include "cpu/attention/index_kernels.h"

#include "cpu/simd/vec.h"

namespace longcat::cpu {

namespace {

void weigh_heads(float* scores, const float* products, const float* weights, int64_t num_keys, int64_t lanes) {
  for (int64_t s = 0; s < num_keys; ++s) {
    const float* row = products + s * lanes;
    vec::f32x8 sum{};
    for (int64_t lane = 0; lane < lanes; lane += vec::kLanes)
      sum += vec::load(weights + lane) * vec::max(vec::load(row + lane), vec::f32x8{});
    float parts[vec::kLanes];
    vec::store(parts, sum);
    scores[s] = ((parts[0] + parts[4]) + (parts[2] + parts[6])) + ((parts[1] + parts[5]) + (parts[3] + parts[7]));
  }
}

}  // namespace

template <>
const IndexKernels& table_of<IndexKernels, Isa::LC_ISA>() {
  static constexpr IndexKernels kTable{.weigh_heads = weigh_heads};
  return kTable;
}

}  // namespace longcat::cpu
