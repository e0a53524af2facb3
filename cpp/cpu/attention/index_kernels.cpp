#include "cpu/attention/index_kernels.h"

#include "cpu/attention/round_to_levels.h"
#include "ops/batch.h"

namespace longcat::cpu {

namespace {

float round_key(int8_t* out, const float* key, int64_t n) {
  return round_to_levels(out, key, n, Int8IndexKey::kLevels);
}

float round_query(int16_t* out, const float* query, int64_t n) {
  constexpr float kQueryLevels = 32767;
  return round_to_levels(out, query, n, kQueryLevels);
}

void widen_key(Int16Pair* pairs, const int8_t* values, int64_t n) {
  int16_t* const wide = &pairs->first;
  for (int64_t k = 0; k < n; ++k) wide[k] = values[k];
  if (n % 2) wide[n] = 0;
}

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
  static constexpr IndexKernels kTable{
      .round_key = round_key, .round_query = round_query, .widen_key = widen_key, .weigh_heads = weigh_heads};
  return kTable;
}

}  // namespace longcat::cpu
