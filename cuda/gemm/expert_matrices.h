// The matrices of a layer's experts, as a kernel's argument.
#pragma once

#include <span>

#include "cuda/kernels/few_token_experts.h"
#include "ops/weight.h"

namespace longcat::gpu {

// experts: at most ExpertMatrices::kMost.
inline ExpertMatrices matrices_of(std::span<const Weight> experts) {
  ExpertMatrices all{};
  for (size_t e = 0; e < experts.size(); ++e) all.of[e] = static_cast<const bf16*>(experts[e].data);
  return all;
}

}  // namespace longcat::gpu
