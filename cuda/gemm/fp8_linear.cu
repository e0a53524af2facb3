// Launches of Fp8Linear, each in the width that fits the number of tokens, and of Fp8Wide.
#include <algorithm>

#include "cuda/gemm/fp8_linear.h"
#include "cuda/gemm/layers.h"
#include "cuda/kernels/fp8_linear.h"
#include "cuda/kernels/fp8_wide.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat::gpu {

namespace {

using Widest = Fp8Linear<kFp8Tokens, PlainLayer<bf16, 1, kFp8Tokens>>;

Fp8Scales scales_of(const void* codes, const float* scales, int64_t out_features) {
  return {.at = reinterpret_cast<const char*>(scales) - static_cast<const char*>(codes),
          .row_blocks = static_cast<int32_t>((out_features + kFp8Block - 1) / kFp8Block)};
}

// What a launch has besides its layer: x, and the scales of the layer's parts.
struct Inputs {
  const void* x;
  int64_t x_stride, depth;
  Fp8Scales scales[2];
};

Inputs inputs_of(const Fp8Problem& first, const Fp8Problem& second) {
  return {first.x,
          first.x_stride,
          first.in_features,
          {scales_of(first.weight, first.scales, first.out_features),
           scales_of(second.weight, second.scales, second.out_features)}};
}

template <int kTokens, class Layer>
void launch_width(GpuDevice& device, int64_t blocks, const Inputs& in, const Layer& layer) {
  LC_CHECK(in.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(in.x) % 16 == 0);
  simt::launch(device, blocks,
               Fp8Linear<kTokens, Layer>{.x = static_cast<const bf16*>(in.x),
                                         .x_stride = in.x_stride,
                                         .depth = static_cast<int32_t>(in.depth),
                                         .scales = {in.scales[0], in.scales[1]},
                                         .layer = layer});
}

// tokens: the most of a block.
template <class Layer>
void launch_layer(GpuDevice& device, int64_t blocks, int64_t tokens, const Inputs& in, const Layer& layer) {
  const auto launch_of = tokens <= 8    ? launch_width<8, Layer>
                         : tokens <= 16 ? launch_width<16, Layer>
                                        : launch_width<32, Layer>;
  launch_of(device, blocks, in, layer);
}

// Many tokens take blocks of more rows and tokens.
template <class Out>
void launch_plain(GpuDevice& device, const Fp8Problem& p) {
  using Wide = Fp8Wide<Out>;
  if (p.num_tokens <= kFp8Tokens || p.out_features % Wide::kRows != 0) {
    const int64_t slices = (p.num_tokens + kFp8Tokens - 1) / kFp8Tokens;
    return launch_layer(device, slices * (p.out_features / 16), p.num_tokens, inputs_of(p, p),
                        plain_layer<Out, kFp8Tokens>(p));
  }
  LC_CHECK(p.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0);
  const int64_t slices = (p.num_tokens + Wide::kTokens - 1) / Wide::kTokens;
  simt::launch(device, slices * (p.out_features / Wide::kRows),
               Wide{.x = static_cast<const bf16*>(p.x),
                    .x_stride = p.x_stride,
                    .matrix = static_cast<const unsigned char*>(p.weight),
                    .scales = scales_of(p.weight, p.scales, p.out_features),
                    .out = static_cast<Out*>(p.out),
                    .out_stride = p.out_stride,
                    .depth = static_cast<int32_t>(p.in_features),
                    .num_tokens = static_cast<int32_t>(p.num_tokens),
                    .slices = static_cast<int32_t>(slices)});
}

}  // namespace

bool fits_fp8_linear(const Weight& w) {
  return w.format == WeightFormat::fp8_block && w.out_features % 16 == 0 && w.in_features % kFp8Columns == 0 &&
         w.in_features <= kFp8Columns * Widest::kMostUnits && reinterpret_cast<uintptr_t>(w.data) % 16 == 0 &&
         w.scales != nullptr;
}

bool has_scales_behind(const Weight& w) {
  return reinterpret_cast<const char*>(w.scales) ==
         static_cast<const char*>(w.data) + scales_offset_of(w.out_features * w.in_features);
}

void fp8_linear(GpuDevice& device, const Fp8Problem& p) {
  p.out_dtype == DType::f32 ? launch_plain<float>(device, p) : launch_plain<bf16>(device, p);
}

void fp8_pair(GpuDevice& device, const Fp8Problem& first, const Fp8Problem& second) {
  launch_layer(device, (first.out_features + second.out_features) / 16, first.num_tokens, inputs_of(first, second),
               joined_layer(first, second));
}

void fp8_gate_up(GpuDevice& device, const Fp8Problem& gate, const Fp8Problem& up) {
  launch_layer(device, gate.out_features / 8, gate.num_tokens, inputs_of(gate, up), gate_up_layer(gate, up));
}

void fp8_experts(GpuDevice& device, const ExpertList& list, int64_t max_items, const int32_t* tokens, Tensor out,
                 Tensor inner, Tensor x, const ExpertWeights& experts) {
  const int64_t most = std::min(x.size(0), kFp8Tokens), dim = x.size(1);
  const Weight &gate = experts.gate_proj[0], &down = experts.down_proj[0];
  const int64_t width = gate.out_features;
  const Fp8Scales inner_scales = scales_of(gate.data, gate.scales, width),
                  out_scales = scales_of(down.data, down.scales, dim);
  launch_layer(device, max_items * (width / 8), most, {x.raw(), x.stride(0), dim, {inner_scales, inner_scales}},
               expert_gate_up_layer(list, tokens, inner, experts));
  launch_layer(device, max_items * (dim / 16), most, {inner.raw(), inner.stride(0), width, {out_scales, out_scales}},
               expert_down_layer(list, out, experts));
}

}  // namespace longcat::gpu
