// Layers of packed integers by mma.sync (cuda/kernels/packed_linear.h), for any number of tokens. More than
// kPackedTokens are computed in slices, with the same bits.
#pragma once

#include "cuda/gemm/gemm.h"
#include "cuda/kernels/few_token_experts.h"
#include "ops/ops.h"

namespace longcat::gpu {

constexpr int64_t kPackedTokens = 32;  // of a block

// Each is a dependent launch: see few_tokens.h. The weights are in units (packed_layout.h).
void packed_linear(GpuDevice& device, const GemmProblem& problem);
// At most kPackedTokens tokens, and weights of one format: of one x; gate.out = silu(x G^T) * (x U^T).
void packed_pair(GpuDevice& device, const GemmProblem& first, const GemmProblem& second);
void packed_gate_up(GpuDevice& device, const GemmProblem& gate, const GemmProblem& up);

// As few_token_experts(); an item of the list has at most kPackedTokens rows.
void packed_experts(GpuDevice& device, const ExpertList& list, int64_t max_items, const int32_t* tokens, Tensor out,
                    Tensor inner, Tensor x, const ExpertWeights& experts);

}  // namespace longcat::gpu
