#include "model/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longcat {

namespace {

// YaRN paper, equation 22, with the usual coefficient: 0.1 a ln(factor) + 1.
double attention_temperature(double factor, double a) { return factor <= 1 ? 1.0 : 0.1 * a * std::log(factor) + 1.0; }

}  // namespace

RopeScaling make_rope_scaling(const ModelConfig& config) {
  const int64_t dim = config.qk_rope_head_dim;
  RopeScaling rope;
  for (int64_t j = 0; j < dim / 2; ++j)
    rope.inv_freq.push_back(std::pow(config.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(dim)));
  if (!config.yarn) return rope;
  const YarnConfig& yarn = *config.yarn;

  // Returns the dimension that makes `rotations` turns over the original context.
  const auto correction_dim = [&](double rotations) {
    const double wavelength_ratio =
        static_cast<double>(yarn.original_max_position_embeddings) / (rotations * 2 * std::numbers::pi);
    return static_cast<double>(dim) * std::log(wavelength_ratio) / (2 * std::log(config.rope_theta));
  };
  double low = correction_dim(yarn.beta_fast), high = correction_dim(yarn.beta_slow);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;  // as the reference does, to avoid a division by zero
  for (int64_t j = 0; j < dim / 2; ++j) {
    const double ramp = std::clamp((static_cast<double>(j) - low) / (high - low), 0.0, 1.0);
    rope.inv_freq[j] *= (1 - ramp) + ramp / yarn.factor;
  }

  if (yarn.attention_factor) {
    rope.cos_sin_factor = *yarn.attention_factor;
  } else if (yarn.mscale.value_or(0) != 0 && yarn.mscale_all_dim.value_or(0) != 0) {
    rope.cos_sin_factor =
        attention_temperature(yarn.factor, *yarn.mscale) / attention_temperature(yarn.factor, *yarn.mscale_all_dim);
  } else {
    rope.cos_sin_factor = attention_temperature(yarn.factor, 1);
  }
  if (yarn.mscale_all_dim.value_or(0) != 0) {
    const double mscale = attention_temperature(yarn.factor, *yarn.mscale_all_dim);
    rope.softmax_factor = mscale * mscale;
  }
  return rope;
}

}  // namespace longcat
