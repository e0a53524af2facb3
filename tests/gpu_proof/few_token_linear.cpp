// The proof of cuda/kernels/few_token_linear.h and few_token_layers.h: against float64, and bit for bit against one
// chain of tensor-core products.
#include "cuda/kernels/few_token_layers.h"
#include "tests/gpu_proof/linear_reference.h"

namespace longcat::gpu {

using Linear8 = FewTokenLinear<8, PlainLayer<bf16>>;
using Linear16 = FewTokenLinear<16, PlainLayer<bf16>>;
using Linear32 = FewTokenLinear<32, PlainLayer<float>>;
using Linear64 = FewTokenLinear<64, PlainLayer<bf16>>;
using Planes8 = FewTokenLinear<8, PlainLayer<float, 2>>;
using Joined32 = FewTokenLinear<32, JoinedLayer>;
using GateUp8 = FewTokenLinear<8, GateUpLayer>;

}  // namespace longcat::gpu

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Linear8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Linear16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Linear32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Linear64&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Planes8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Joined32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::GateUp8&, bool);

namespace longcat::emulation {

namespace {

using gpu::FewTokenLinear;
using gpu::PlainLayer;

constexpr int64_t kColumns = 32, kMaxTokens = 64, kStridePadding = 8;  // two blocks
// Of a row's largest value: a bf16 result has 2^-8. f32 results err by truncation at each of up to 384 products, 2^-23
// of the running sum each, always towards zero.
constexpr double kBf16Tolerance = 4e-3, kF32Tolerance = 5e-5;

struct Layer {
  int64_t depth;
  std::vector<bf16> x, w;
  Products products;
  explicit Layer(int64_t k, int64_t tokens = kMaxTokens)
      : depth(k),
        x(random_bf16(tokens * k, 1)),
        w(random_bf16(kColumns * k, 2, 0.02f)),
        products(products_of(x, w, k)) {}
};

template <class T>
std::vector<T> first_of(const std::vector<T>& all, int64_t count) {
  return std::vector<T>(all.begin(), all.begin() + count);
}

// Runs the first tokens. extra_slices: blocks without work. The bits are of token 0, so that all numbers of tokens and
// kTokens agree.
template <int kTokens, class Out>
Outcome run(SimtEmulator& gpu, const Layer& in, int64_t tokens, int64_t extra_slices = 0) {
  std::vector<bf16> x;  // rows farther apart than they need be
  for (int64_t t = 0; t < tokens; ++t) {
    x.insert(x.end(), in.x.begin() + t * in.depth, in.x.begin() + (t + 1) * in.depth);
    x.insert(x.end(), kStridePadding, to_bf16(1e30f));
  }
  const int64_t stride = kColumns + 1;
  const std::vector<double> exact = first_of(in.products.exact, tokens * kColumns);
  const std::vector<float>& sums = in.products.chains[static_cast<int>(gpu.arithmetic())];
  std::vector<Out> chain;
  for (size_t i = 0; i < static_cast<size_t>(tokens * kColumns); ++i) chain.push_back(rounded_to<Out>(sums[i]));
  Out* const out = gpu.output<Out>(tokens * stride);
  FewTokenLinear<kTokens, PlainLayer<Out>> kernel{.x = gpu.input(x),
                                                  .x_stride = in.depth + kStridePadding,
                                                  .depth = static_cast<int32_t>(in.depth),
                                                  .layer = {.weight = gpu.input(in.w),
                                                            .plane_stride = 0,
                                                            .out = out,
                                                            .out_stride = stride,
                                                            .tiles = kColumns / 16,
                                                            .num_tokens = static_cast<int32_t>(tokens)}};
  const int64_t slices = (tokens + 63) / 64 + extra_slices;
  gpu.launch(slices * (kColumns / 16), kernel, extra_slices > 0);
  const std::vector<Out> wide = gpu.read(out, tokens * stride);
  std::vector<Out> found;
  for (int64_t t = 0; t < tokens; ++t)
    found.insert(found.end(), wide.begin() + t * stride, wide.begin() + t * stride + kColumns);
  return {error_of(found, chain, exact, kColumns), sizeof(Out) == 2 ? kBf16Tolerance : kF32Tolerance,
          hash_of_bytes(found.data(), kColumns * static_cast<int64_t>(sizeof(Out)))};
}

// W as the sum of two planes, the small one first: its products are one chain before those of the large one.
Outcome run_planes(SimtEmulator& gpu, int64_t depth, int64_t tokens) {
  const std::vector<float> weights = random_f32(kColumns * depth, 5, 0.02f);
  const std::vector<bf16> x = random_bf16(tokens * depth, 6);
  std::vector<bf16> low, high, joined, twice;
  for (const float w : weights) {
    high.push_back(to_bf16(w));
    low.push_back(to_bf16(w - to_float(high.back())));
  }
  const auto append = [&](std::vector<bf16>& to, const std::vector<bf16>& from, int64_t row) {
    to.insert(to.end(), from.begin() + row * depth, from.begin() + (row + 1) * depth);
  };
  for (int64_t row = 0; row < kColumns; ++row) {
    append(joined, low, row);
    append(joined, high, row);
  }
  for (int64_t row = 0; row < tokens; ++row) {
    append(twice, x, row);
    append(twice, x, row);
  }
  const Products products = products_of(twice, joined, 2 * depth);
  std::vector<double> exact;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < kColumns; ++c) {
      double sum = 0;
      for (int64_t k = 0; k < depth; ++k)
        sum += double{to_float(x[static_cast<size_t>(t * depth + k)])} * weights[static_cast<size_t>(c * depth + k)];
      exact.push_back(sum);
    }
  std::vector<bf16> planes = low;
  planes.insert(planes.end(), high.begin(), high.end());
  gpu::Planes8 kernel{.x = gpu.input(x),
                      .x_stride = depth,
                      .depth = static_cast<int32_t>(depth),
                      .layer = {.weight = gpu.input(planes),
                                .plane_stride = kColumns * depth,
                                .out = gpu.output<float>(tokens * kColumns),
                                .out_stride = kColumns,
                                .tiles = kColumns / 16,
                                .num_tokens = static_cast<int32_t>(tokens)}};
  gpu.launch(kColumns / 16, kernel);
  const std::vector<float> found = gpu.read(kernel.layer.out, tokens * kColumns);
  return {error_of(found, products.chains[static_cast<int>(gpu.arithmetic())], exact, kColumns), kF32Tolerance,
          hash_of_bytes(found.data(), kColumns * 4)};
}

// Two layers, the second launched over the first: its x may be read only when the first has ended.
Outcome run_overlapping(SimtEmulator& gpu, int64_t tokens) {
  constexpr int64_t kDepth = 128;
  const std::vector<bf16> x = random_bf16(tokens * kDepth, 7), w = random_bf16(kDepth * kDepth, 8, 0.1f);
  const Products first = products_of(x, w, kDepth);
  std::vector<bf16> between, chain;
  for (const float sum : first.chains[static_cast<int>(gpu.arithmetic())]) between.push_back(to_bf16(sum));
  const Products second = products_of(between, w, kDepth);
  for (const float sum : second.chains[static_cast<int>(gpu.arithmetic())]) chain.push_back(to_bf16(sum));
  gpu::Linear16 kernel{.x = gpu.input(x),
                       .x_stride = kDepth,
                       .depth = kDepth,
                       .layer = {.weight = gpu.input(w),
                                 .plane_stride = 0,
                                 .out = gpu.output<bf16>(tokens * kDepth),
                                 .out_stride = kDepth,
                                 .tiles = kDepth / 16,
                                 .num_tokens = static_cast<int32_t>(tokens)}};
  gpu.launch(kDepth / 16, kernel);
  kernel.x = kernel.layer.out;
  kernel.layer.out = gpu.output<bf16>(tokens * kDepth);
  gpu.launch(kDepth / 16, kernel, true);
  const std::vector<bf16> found = gpu.read(kernel.layer.out, tokens * kDepth);
  return {error_of(found, chain, second.exact, kDepth), kBf16Tolerance, hash_of(found)};
}

// Columns [first, first + count) of products with kColumns columns.
template <class T>
std::vector<T> columns_of(const std::vector<T>& all, int64_t tokens, int64_t first, int64_t count) {
  std::vector<T> part;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto row = all.begin() + t * kColumns + first;
    part.insert(part.end(), row, row + count);
  }
  return part;
}

// The 32 rows of W as a layer of 16 and one of 16, whose outputs lie apart.
Outcome run_joined(SimtEmulator& gpu, const Layer& in, int64_t tokens) {
  const auto middle = in.w.begin() + kColumns / 2 * in.depth;
  gpu::Joined32 kernel{.x = gpu.input(first_of(in.x, tokens * in.depth)),
                       .x_stride = in.depth,
                       .depth = static_cast<int32_t>(in.depth),
                       .layer = {.weights = {gpu.input(std::vector<bf16>(in.w.begin(), middle)),
                                             gpu.input(std::vector<bf16>(middle, in.w.end()))},
                                 .outs = {gpu.output<bf16>(tokens * 16), gpu.output<bf16>(tokens * 24)},
                                 .out_strides = {16, 24},
                                 .tiles = 1,
                                 .num_tokens = static_cast<int32_t>(tokens)}};
  gpu.launch(2, kernel);
  std::vector<bf16> found = gpu.read(kernel.layer.outs[0], tokens * 16);
  const std::vector<bf16> wide = gpu.read(kernel.layer.outs[1], tokens * 24);
  for (int64_t t = 0; t < tokens; ++t) found.insert(found.end(), wide.begin() + t * 24, wide.begin() + t * 24 + 16);
  std::vector<double> exact;
  std::vector<bf16> chain;
  for (const int64_t first : {0, 16}) {
    const std::vector<double> part = columns_of(in.products.exact, tokens, first, 16);
    exact.insert(exact.end(), part.begin(), part.end());
    for (const float sum : columns_of(in.products.chains[static_cast<int>(gpu.arithmetic())], tokens, first, 16))
      chain.push_back(to_bf16(sum));
  }
  return {error_of(found, chain, exact, 16), kBf16Tolerance, hash_of(found)};
}

// The 32 rows of W as 16 of the gate and 16 of the up projection.
Outcome run_gate_up(SimtEmulator& gpu, const Layer& in, int64_t tokens) {
  const auto middle = in.w.begin() + kColumns / 2 * in.depth;
  gpu::GateUp8 kernel{.x = gpu.input(first_of(in.x, tokens * in.depth)),
                      .x_stride = in.depth,
                      .depth = static_cast<int32_t>(in.depth),
                      .layer = {.gate = gpu.input(std::vector<bf16>(in.w.begin(), middle)),
                                .up = gpu.input(std::vector<bf16>(middle, in.w.end())),
                                .out = gpu.output<bf16>(tokens * 16),
                                .out_stride = 16,
                                .num_tokens = static_cast<int32_t>(tokens)}};
  gpu.launch(2, kernel);
  const std::vector<bf16> found = gpu.read(kernel.layer.out, tokens * 16);
  const std::vector<float>& sums = in.products.chains[static_cast<int>(gpu.arithmetic())];
  return silu_outcome(found, columns_of(sums, tokens, 0, 16), columns_of(sums, tokens, 16, 16),
                      columns_of(in.products.exact, tokens, 0, 16), columns_of(in.products.exact, tokens, 16, 16), 16);
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Layer small(3072), large(6144), shortest(128, 130);
  const auto of = [](auto run_one, const Layer& in, int64_t tokens, int64_t extra_slices = 0) {
    return [=, &in](SimtEmulator& gpu) { return run_one(gpu, in, tokens, extra_slices); };
  };
  return prove(argc, argv,
               {{"1 token", of(run<8, bf16>, small, 1), "3072"},
                {"16 tokens", of(run<16, bf16>, small, 16), "3072"},
                {"3 tokens, two planes of W", [](SimtEmulator& gpu) { return run_planes(gpu, 3072, 3); }},
                {"13 tokens, launched over their producer", [](SimtEmulator& gpu) { return run_overlapping(gpu, 13); }},
                {"1 step of K", of(run<64, bf16>, shortest, 64), "128"},
                {"17 tokens, two layers joined", [&](SimtEmulator& gpu) { return run_joined(gpu, small, 17); }},
                {"5 tokens, gate and up", [&](SimtEmulator& gpu) { return run_gate_up(gpu, small, 5); }},
                {"17 tokens, f32", of(run<32, float>, small, 17)},
                {"17 tokens in room for 64", of(run<64, bf16>, small, 17), "3072"},
                {"63 tokens", of(run<64, bf16>, small, 63), "3072"},
                {"64 tokens", of(run<64, bf16>, small, 64), "3072"},
                {"130 tokens, in slices", of(run<64, bf16>, shortest, 130), "128"},
                {"2 tokens, and blocks without work", of(run<8, bf16>, shortest, 2, 1), "128"},
                {"K = 6144, 1 token", of(run<8, bf16>, large, 1), "6144"},
                {"K = 6144, 64 tokens", of(run<64, bf16>, large, 64), "6144"}});
}
