// Layers of at most 64 tokens by mma.sync (cuda/kernels/few_token_linear.h). They give the bits of the kernels for many
// tokens: of CUTLASS's on 9.0, and of the plain kernel's chain on an emulated device.
#pragma once

#include "cuda/gemm/gemm.h"
#include "cuda/kernels/few_token_experts.h"
#include "cuda/kernels/router_picks.h"
#include "ops/ops.h"

namespace longcat::gpu {

constexpr int64_t kFewTokens = 64;
constexpr int64_t kRouterCountsBytes = RouterPicks::kMaxExperts * 8 + 8;  // masks, then the counter

// Each is a dependent launch: it may begin before the kernel before it has ended. So neither may be the first kernel
// behind a wait for another stream.
void few_token_linear(GpuDevice& device, const GemmProblem& problem);
void few_token_pair(GpuDevice& device, const GemmProblem& first, const GemmProblem& second);  // of one x
// gate.out = silu(x G^T) * (x U^T).
void few_token_gate_up(GpuDevice& device, const GemmProblem& gate, const GemmProblem& up);

// scores [T, outputs] f32 = x classifier^T for any T, in format bf16_planes. Not a dependent launch.
void router_scores(GpuDevice& device, Tensor scores, Tensor x, const Weight& classifier);
void router_picks(GpuDevice& device, int64_t num_tokens, const RouterPicks& kernel);

// The experts of `list`, which has at most max_items. inner [rows, expert_ffn] = silu(x[tokens] G^T) * (x[tokens] U^T);
// out [rows, dim] = inner D^T.
void few_token_experts(GpuDevice& device, const ExpertList& list, int64_t max_items, const int32_t* tokens, Tensor out,
                       Tensor inner, Tensor x, const ExpertWeights& experts);

}  // namespace longcat::gpu
