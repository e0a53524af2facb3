// Launches of the kernels for few tokens, each in the width that fits the number of tokens.
#include "cuda/gemm/few_tokens.h"
#include "cuda/gemm/layers.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat::gpu {

namespace {

template <int kTokens, class Layer>
void launch_width(GpuDevice& device, int64_t blocks, const bf16* x, int64_t x_stride, int64_t depth,
                  const Layer& layer) {
  simt::launch(device, blocks,
               FewTokenLinear<kTokens, Layer>{
                   .x = x, .x_stride = x_stride, .depth = static_cast<int32_t>(depth), .layer = layer});
}

// tokens: the most of a block.
template <class Layer>
void launch_layer(GpuDevice& device, int64_t blocks, int64_t tokens, const void* x, int64_t x_stride, int64_t depth,
                  const Layer& layer) {
  const auto launch_of = tokens <= 8    ? launch_width<8, Layer>
                         : tokens <= 16 ? launch_width<16, Layer>
                         : tokens <= 32 ? launch_width<32, Layer>
                                        : launch_width<64, Layer>;
  launch_of(device, blocks, static_cast<const bf16*>(x), x_stride, depth, layer);
}

}  // namespace

void few_token_linear(GpuDevice& device, const GemmProblem& p) {
  const int64_t blocks = p.out_features / 16;
  if (p.out_dtype == DType::f32)
    return launch_layer(device, blocks, p.num_tokens, p.x, p.x_stride, p.in_features, plain_layer<float>(p));
  launch_layer(device, blocks, p.num_tokens, p.x, p.x_stride, p.in_features, plain_layer<bf16>(p));
}

void few_token_pair(GpuDevice& device, const GemmProblem& first, const GemmProblem& second) {
  launch_layer(device, (first.out_features + second.out_features) / 16, first.num_tokens, first.x, first.x_stride,
               first.in_features, joined_layer(first, second));
}

void few_token_gate_up(GpuDevice& device, const GemmProblem& gate, const GemmProblem& up) {
  launch_layer(device, gate.out_features / 8, gate.num_tokens, gate.x, gate.x_stride, gate.in_features,
               gate_up_layer(gate, up));
}

void router_scores(GpuDevice& device, Tensor scores, Tensor x, const Weight& classifier) {
  const int64_t num_tokens = x.size(0), tiles = classifier.out_features / 16;
  launch_layer(device, (num_tokens + kFewTokens - 1) / kFewTokens * tiles, num_tokens, x.raw(), x.stride(0),
               classifier.in_features,
               PlainLayer<float, 2>{.weight = static_cast<const bf16*>(classifier.data),
                                    .plane_stride = classifier.out_features * classifier.in_features,
                                    .out = scores.data<float>(),
                                    .out_stride = scores.stride(0),
                                    .tiles = static_cast<int32_t>(tiles),
                                    .num_tokens = static_cast<int32_t>(num_tokens)});
}

void router_picks(GpuDevice& device, int64_t num_tokens, const RouterPicks& kernel) {
  simt::launch(device, num_tokens, kernel);
}

void few_token_experts(GpuDevice& device, const ExpertList& list, int64_t max_items, const int32_t* tokens, Tensor out,
                       Tensor inner, Tensor x, const ExpertWeights& experts) {
  const int64_t num_tokens = x.size(0), width = experts.gate_proj[0].out_features, dim = x.size(1);
  launch_layer(device, max_items * (width / 8), num_tokens, x.raw(), x.stride(0), dim,
               expert_gate_up_layer(list, tokens, inner, experts));
  launch_layer(device, max_items * (dim / 16), num_tokens, inner.raw(), inner.stride(0), width,
               expert_down_layer(list, out, experts));
}

}  // namespace longcat::gpu
