// The layers of FewTokenLinear, PackedLinear and Fp8Linear, made of problems. Pointers to weights of any format are
// pointers to bf16 there.
#pragma once

#include "cuda/gemm/expert_matrices.h"
#include "cuda/gemm/gemm.h"
#include "cuda/kernels/few_token_experts.h"
#include "ops/ops.h"

namespace longcat::gpu {

template <class Out, int kMostTokens = 64>
PlainLayer<Out, 1, kMostTokens> plain_layer(const GemmProblem& p) {
  return {.weight = static_cast<const bf16*>(p.weight),
          .plane_stride = 0,
          .out = static_cast<Out*>(p.out),
          .out_stride = p.out_stride,
          .tiles = static_cast<int32_t>(p.out_features / 16),
          .num_tokens = static_cast<int32_t>(p.num_tokens)};
}

// Two of one x.
inline JoinedLayer joined_layer(const GemmProblem& first, const GemmProblem& second) {
  return {.weights = {static_cast<const bf16*>(first.weight), static_cast<const bf16*>(second.weight)},
          .outs = {static_cast<bf16*>(first.out), static_cast<bf16*>(second.out)},
          .out_strides = {first.out_stride, second.out_stride},
          .tiles = static_cast<int32_t>(first.out_features / 16),
          .num_tokens = static_cast<int32_t>(first.num_tokens)};
}

// Results go where gate's would.
inline GateUpLayer gate_up_layer(const GemmProblem& gate, const GemmProblem& up) {
  return {.gate = static_cast<const bf16*>(gate.weight),
          .up = static_cast<const bf16*>(up.weight),
          .out = static_cast<bf16*>(gate.out),
          .out_stride = gate.out_stride,
          .num_tokens = static_cast<int32_t>(gate.num_tokens)};
}

inline ExpertGateUpLayer expert_gate_up_layer(const ExpertList& list, const int32_t* tokens, Tensor out,
                                              const ExpertWeights& experts) {
  return {.list = list,
          .gates = matrices_of(experts.gate_proj),
          .ups = matrices_of(experts.up_proj),
          .tokens = tokens,
          .out = out.data<bf16>(),
          .out_features = experts.gate_proj[0].out_features};
}

inline ExpertDownLayer expert_down_layer(const ExpertList& list, Tensor out, const ExpertWeights& experts) {
  return {.list = list,
          .weights = matrices_of(experts.down_proj),
          .out = out.data<bf16>(),
          .out_features = experts.down_proj[0].out_features};
}

}  // namespace longcat::gpu
