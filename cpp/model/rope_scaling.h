// Frequencies of the rotary embedding and the factors that come with YaRN.
#pragma once

#include <vector>

#include "io/model_config.h"

namespace longcat {

struct RopeScaling {
  std::vector<double> inv_freq;  // [qk_rope_head_dim / 2] radians per position, highest first
  double cos_sin_factor = 1;     // on cos and sin
  double softmax_factor = 1;     // on the softmax scale
};

// Static YaRN ("NTK by parts", YaRN paper section 3.2; `rope_scaling` of config.json), or plain RoPE without it.
RopeScaling make_rope_scaling(const ModelConfig& config);

}  // namespace longcat
