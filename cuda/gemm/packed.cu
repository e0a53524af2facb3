// Launches of PackedLinear, each in the width that fits the number of tokens.
#include <algorithm>

#include "cuda/gemm/layers.h"
#include "cuda/gemm/packed.h"
#include "cuda/kernels/packed_linear.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat::gpu {

namespace {

// What a launch has besides its layer.
struct Inputs {
  const void* x;
  int64_t x_stride, depth;
  WeightFormat format;
};

template <int kTokens, int kBits, class Layer>
void launch_width(GpuDevice& device, int64_t blocks, const Inputs& in, const Layer& layer) {
  LC_CHECK(in.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(in.x) % 16 == 0);
  simt::launch(device, blocks,
               PackedLinear<kTokens, kBits, Layer>{
                   .x = static_cast<const bf16*>(in.x),
                   .x_stride = in.x_stride,
                   .depth = static_cast<int32_t>(in.depth),
                   .pitch = static_cast<int32_t>(in.depth / kUnitColumns * unit_bytes(kBits) / 16),
                   .half_scales = has_half_scales(in.format),
                   .layer = layer});
}

template <int kBits, class Layer>
void launch_bits(GpuDevice& device, int64_t blocks, int64_t tokens, const Inputs& in, const Layer& layer) {
  const auto launch_of = tokens <= 8    ? launch_width<8, kBits, Layer>
                         : tokens <= 16 ? launch_width<16, kBits, Layer>
                                        : launch_width<32, kBits, Layer>;
  launch_of(device, blocks, in, layer);
}

// tokens: the most of a block.
template <class Layer>
void launch_layer(GpuDevice& device, int64_t blocks, int64_t tokens, const Inputs& in, const Layer& layer) {
  (bits_of(in.format) == 4 ? launch_bits<4, Layer> : launch_bits<8, Layer>)(device, blocks, tokens, in, layer);
}

Inputs inputs_of(const GemmProblem& p) { return {p.x, p.x_stride, p.in_features, p.format}; }

template <class Out>
void launch_plain(GpuDevice& device, const GemmProblem& p) {
  const int64_t slices = (p.num_tokens + kPackedTokens - 1) / kPackedTokens;
  launch_layer(device, slices * (p.out_features / 16), p.num_tokens, inputs_of(p), plain_layer<Out, kPackedTokens>(p));
}

}  // namespace

void packed_linear(GpuDevice& device, const GemmProblem& p) {
  p.out_dtype == DType::f32 ? launch_plain<float>(device, p) : launch_plain<bf16>(device, p);
}

void packed_pair(GpuDevice& device, const GemmProblem& first, const GemmProblem& second) {
  launch_layer(device, (first.out_features + second.out_features) / 16, first.num_tokens, inputs_of(first),
               joined_layer(first, second));
}

void packed_gate_up(GpuDevice& device, const GemmProblem& gate, const GemmProblem& up) {
  launch_layer(device, gate.out_features / 8, gate.num_tokens, inputs_of(gate), gate_up_layer(gate, up));
}

void packed_experts(GpuDevice& device, const ExpertList& list, int64_t max_items, const int32_t* tokens, Tensor out,
                    Tensor inner, Tensor x, const ExpertWeights& experts) {
  const int64_t most = std::min(x.size(0), kPackedTokens), dim = x.size(1);
  const int64_t width = experts.gate_proj[0].out_features;
  launch_layer(device, max_items * (width / 8), most, {x.raw(), x.stride(0), dim, experts.gate_proj[0].format},
               expert_gate_up_layer(list, tokens, inner, experts));
  launch_layer(device, max_items * (dim / 16), most, {inner.raw(), inner.stride(0), width, experts.down_proj[0].format},
               expert_down_layer(list, out, experts));
}

}  // namespace longcat::gpu
