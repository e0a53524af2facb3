// Layers of e4m3 codes whose inputs stay bf16, by mma.sync. Fp8Linear (cuda/kernels/fp8_linear.h) takes up to
// kFp8Tokens tokens, and Fp8Wide more. Where the number of rows of W is no multiple of 64, Fp8Linear takes more tokens
// in slices. All have the same bits.
#pragma once

#include "cuda/gemm/gemm.h"
#include "cuda/kernels/few_token_experts.h"
#include "ops/ops.h"

namespace longcat::gpu {

constexpr int64_t kFp8Tokens = 32;  // of a block

// The kernel reads matrices whose rows are a multiple of 16 and whose K is one of 128, up to 16,384.
bool fits_fp8_linear(const Weight& weight);
// Whether the scales lie behind the codes (quantize.h). Those of experts must: a launch has one distance for all.
bool has_scales_behind(const Weight& weight);

// A layer with its scales, as GroupedWeights has them.
struct Fp8Problem : GemmProblem {
  Fp8Problem(const GemmProblem& problem, const Weight& weight) : GemmProblem(problem), scales(weight.scales) {}

  const float* scales;
};

// Each is a dependent launch: see few_tokens.h.
void fp8_linear(GpuDevice& device, const Fp8Problem& problem);
// At most kFp8Tokens tokens: of one x; gate.out = silu(x G^T) * (x U^T).
void fp8_pair(GpuDevice& device, const Fp8Problem& first, const Fp8Problem& second);
void fp8_gate_up(GpuDevice& device, const Fp8Problem& gate, const Fp8Problem& up);

// As few_token_experts(); an item of the list has at most kFp8Tokens rows.
void fp8_experts(GpuDevice& device, const ExpertList& list, int64_t max_items, const int32_t* tokens, Tensor out,
                 Tensor inner, Tensor x, const ExpertWeights& experts);

}  // namespace longcat::gpu
