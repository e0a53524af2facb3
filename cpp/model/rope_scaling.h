// Frequencies and factors of the rotary embedding, with or without YaRN.
#pragma once

#include <vector>

#include "io/model_config.h"

namespace longcat {

struct RopeScaling {
  std::vector<double> inv_freq;  // [qk_rope_head_dim / 2] radians per position, highest first
  double cos_sin_factor = 1;     // factor on cos and sin
  double softmax_factor = 1;     // factor on the softmax scale
};

// Static YaRN ("NTK by parts", YaRN paper section 3.2; `rope_scaling` of config.json), or plain RoPE when it is absent.
RopeScaling make_rope_scaling(const ModelConfig& config);

}  // namespace longcat
