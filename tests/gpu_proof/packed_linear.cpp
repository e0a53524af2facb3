// The proof of cuda/kernels/packed_linear.h: against float64, and bit for bit against its arithmetic written plainly.
#include "cuda/kernels/packed_linear.h"

#include <random>

#include "cuda/kernels/few_token_experts.h"
#include "tests/gpu_proof/linear_reference.h"
#include "tests/gpu_proof/written.h"

namespace longcat::gpu {

template <class Out>
using Plain = PlainLayer<Out, 1, 32>;
using Int4Linear8 = PackedLinear<8, 4, Plain<bf16>>;
using Int4Linear16 = PackedLinear<16, 4, Plain<bf16>>;
using Int4Linear32 = PackedLinear<32, 4, Plain<bf16>>;
using Int8Linear8 = PackedLinear<8, 8, Plain<bf16>>;
using Int8Linear32 = PackedLinear<32, 8, Plain<float>>;
using Int8Joined16 = PackedLinear<16, 8, JoinedLayer>;
using Int4GateUp8 = PackedLinear<8, 4, GateUpLayer>;
using Int4ExpertGateUp16 = PackedLinear<16, 4, ExpertGateUpLayer>;
using Int8ExpertDown16 = PackedLinear<16, 8, ExpertDownLayer>;

}  // namespace longcat::gpu

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int4Linear8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int4Linear16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int4Linear32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int8Linear8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int8Linear32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int8Joined16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int4GateUp8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int4ExpertGateUp16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Int8ExpertDown16&, bool);

namespace longcat::emulation {

namespace {

constexpr int64_t kColumns = 32, kMostTokens = 40;  // of the output: four groups of 8 rows of W
// Of a row's largest value: a bf16 result has 2^-8. f32 sums of 48 blocks round each time, and their products are cut.
constexpr double kBf16Tolerance = 4e-3, kF32Tolerance = 5e-5;

// Integers with scales, x, and what their products are.
struct Matrix {
  int bits;
  bool half;
  int64_t depth;
  std::vector<int> q;            // [kColumns, depth]
  std::vector<uint16_t> scales;  // [kColumns, depth / 32]
  std::vector<bf16> x;           // [kMostTokens, depth]
  std::vector<double> exact;     // [kMostTokens, kColumns]
  std::vector<float> chains[2];  // of each Arithmetic

  Matrix(int num_bits, bool half_scales, int64_t k, uint64_t seed = 1)
      : bits(num_bits), half(half_scales), depth(k), x(random_bf16(kMostTokens * k, 1)) {
    std::mt19937_64 random(seed);
    const int most = 1 << (bits - 1);
    for (int64_t i = 0; i < kColumns * depth; ++i)
      q.push_back(static_cast<int>(random() % static_cast<uint64_t>(2 * most)) - most);
    for (int64_t i = 0; i < kColumns * depth / 32; ++i) {
      const float scale = 0.001f * static_cast<float>(1 + random() % 64);
      scales.push_back(half ? to_half(scale) : to_bf16(scale).bits);
    }
    for (int64_t token = 0; token < kMostTokens; ++token)
      for (int64_t row = 0; row < kColumns; ++row) add_result(token, row);
  }

  float scale(int64_t row, int64_t block) const {
    const uint16_t of_block = scales[static_cast<size_t>(row * depth / 32 + block)];
    return half ? half_to_float(of_block) : to_float(bf16{of_block});
  }

  // Four chains of fma(scale, product of 32 columns, sum), of every fourth unit of 128 columns.
  void add_result(int64_t token, int64_t row) {
    double sum = 0;
    float chain[2][4] = {};
    for (int64_t block = 0; block < depth / 32; ++block) {
      float product[2] = {};
      for (int half_block = 0; half_block < 2; ++half_block) {
        bf16 w[16], inputs[16];
        for (int k = 0; k < 16; ++k) {  // as the fragments of m16n8k16 have them
          const int64_t column = block * 32 + k % 8 / 2 * 8 + half_block * 4 + k / 8 * 2 + k % 2;
          w[k] = to_bf16(static_cast<float>(q[static_cast<size_t>(row * depth + column)]));
          inputs[k] = x[static_cast<size_t>(token * depth + column)];
          sum += double{to_float(w[k])} * double{scale(row, block)} * double{to_float(inputs[k])};
          product[static_cast<int>(Arithmetic::plain)] += to_float(w[k]) * to_float(inputs[k]);
        }
        float& hopper = product[static_cast<int>(Arithmetic::hopper)];
        hopper = hopper_dot(w, inputs, hopper);
      }
      for (int i = 0; i < 2; ++i) {
        float& part = chain[i][block / 4 % 4];
        part = std::fma(scale(row, block), product[i], part);
      }
    }
    exact.push_back(sum);
    for (int i = 0; i < 2; ++i) chains[i].push_back(chain[i][0] + chain[i][1] + chain[i][2] + chain[i][3]);
  }

  int64_t group_bytes() const { return depth / 128 * (1024 * bits / 8 + 64); }
  int32_t pitch() const { return static_cast<int32_t>(group_bytes() / 16); }

  // Groups [first, first + count) as packed_layout.h describes them.
  std::vector<uint8_t> groups(int64_t first, int64_t count) const {
    const int64_t unit_bytes = 1024 * bits / 8 + 64;
    std::vector<uint8_t> all(static_cast<size_t>(count * group_bytes()));
    for (int64_t row = 0; row < count * 8; ++row)
      for (int64_t column = 0; column < depth; ++column) {
        uint8_t* const unit = all.data() + row / 8 * group_bytes() + column / 128 * unit_bytes;
        const int64_t block = column % 128 / 32, lane = row % 8 * 4 + column % 32 / 8, j = column % 8;
        const int value = q[static_cast<size_t>((first * 8 + row) * depth + column)];
        if (bits == 4) {
          const int64_t bit = 16 * (j % 2) + 4 * (j / 2);
          unit[lane * 16 + block * 4 + bit / 8] |= static_cast<uint8_t>((value + 8) << bit % 8);
        } else {
          constexpr int kPlace[4] = {0, 2, 1, 3};
          unit[block / 2 * 512 + lane * 16 + block % 2 * 8 + j / 4 * 4 + kPlace[j % 4]] = static_cast<uint8_t>(value);
        }
        std::memcpy(unit + 128 * bits + row % 8 * 8 + block * 2,
                    &scales[static_cast<size_t>((first * 8 + row) * depth / 32 + column / 32)], 2);
      }
    return all;
  }
};

const bf16* groups_of(SimtEmulator& gpu, const Matrix& in, int64_t first, int64_t count) {
  return reinterpret_cast<const bf16*>(gpu.input(in.groups(first, count)));
}

template <class T>
std::vector<T> columns_of(const std::vector<T>& all, int64_t first_token, int64_t tokens, int64_t first,
                          int64_t count) {
  std::vector<T> part;
  for (int64_t t = first_token; t < first_token + tokens; ++t) {
    const auto row = all.begin() + t * kColumns + first;
    part.insert(part.end(), row, row + count);
  }
  return part;
}

const std::vector<float>& sums_of(SimtEmulator& gpu, const Matrix& in) {
  return in.chains[static_cast<int>(gpu.arithmetic())];
}

template <class Out>
std::vector<Out> rounded_all(const std::vector<float>& sums) {
  std::vector<Out> all;
  for (const float sum : sums) all.push_back(rounded_to<Out>(sum));
  return all;
}

template <class Kernel>
Kernel kernel_of(SimtEmulator& gpu, const Matrix& in, const std::vector<bf16>& x, int64_t x_stride) {
  return {.x = gpu.input(x),
          .x_stride = x_stride,
          .depth = static_cast<int32_t>(in.depth),
          .pitch = in.pitch(),
          .half_scales = in.half};
}

std::vector<bf16> rows_of(const Matrix& in, int64_t tokens) {
  return std::vector<bf16>(in.x.begin(), in.x.begin() + tokens * in.depth);
}

// The bits are of token 0, so that all numbers of tokens and kTokens agree. extra_slices: blocks without work.
template <int kTokens, int kBits, class Out>
Outcome run(SimtEmulator& gpu, const Matrix& in, int64_t tokens, int64_t extra_slices = 0) {
  constexpr int64_t kPadding = 8;
  std::vector<bf16> x;  // rows farther apart than they need be
  for (int64_t t = 0; t < tokens; ++t) {
    x.insert(x.end(), in.x.begin() + t * in.depth, in.x.begin() + (t + 1) * in.depth);
    x.insert(x.end(), kPadding, to_bf16(1e30f));
  }
  auto kernel = kernel_of<gpu::PackedLinear<kTokens, kBits, gpu::Plain<Out>>>(gpu, in, x, in.depth + kPadding);
  kernel.layer = {.weight = groups_of(gpu, in, 0, 4),
                  .plane_stride = 0,
                  .out = gpu.output<Out>(tokens * kColumns),
                  .out_stride = kColumns,
                  .tiles = kColumns / 16,
                  .num_tokens = static_cast<int32_t>(tokens)};
  gpu.launch(((tokens + 31) / 32 + extra_slices) * (kColumns / 16), kernel, extra_slices > 0);
  const std::vector<Out> found = gpu.read(kernel.layer.out, tokens * kColumns);
  const std::vector<Out> chain = rounded_all<Out>(columns_of(sums_of(gpu, in), 0, tokens, 0, kColumns));
  return {error_of(found, chain, columns_of(in.exact, 0, tokens, 0, kColumns), kColumns),
          sizeof(Out) == 2 ? kBf16Tolerance : kF32Tolerance,
          hash_of_bytes(found.data(), kColumns * static_cast<int64_t>(sizeof(Out)))};
}

// x is what a grid before has written.
Outcome run_joined(SimtEmulator& gpu, const Matrix& in, int64_t tokens) {
  auto kernel = kernel_of<gpu::Int8Joined16>(gpu, in, {to_bf16(0)}, in.depth);
  kernel.x = written(gpu, rows_of(in, tokens));
  kernel.layer = {.weights = {groups_of(gpu, in, 0, 2), groups_of(gpu, in, 2, 2)},
                  .outs = {gpu.output<bf16>(tokens * 16), gpu.output<bf16>(tokens * 24)},
                  .out_strides = {16, 24},
                  .tiles = 1,
                  .num_tokens = static_cast<int32_t>(tokens)};
  gpu.launch(2, kernel, true);
  std::vector<bf16> found = gpu.read(kernel.layer.outs[0], tokens * 16);
  const std::vector<bf16> wide = gpu.read(kernel.layer.outs[1], tokens * 24);
  for (int64_t t = 0; t < tokens; ++t) found.insert(found.end(), wide.begin() + t * 24, wide.begin() + t * 24 + 16);
  std::vector<double> exact;
  std::vector<float> sums;
  for (const int64_t first : {0, 16}) {
    const std::vector<double> part = columns_of(in.exact, 0, tokens, first, 16);
    exact.insert(exact.end(), part.begin(), part.end());
    const std::vector<float> some = columns_of(sums_of(gpu, in), 0, tokens, first, 16);
    sums.insert(sums.end(), some.begin(), some.end());
  }
  return {error_of(found, rounded_all<bf16>(sums), exact, 16), kBf16Tolerance, hash_of(found)};
}

Outcome run_gate_up(SimtEmulator& gpu, const Matrix& in, int64_t tokens) {
  auto kernel = kernel_of<gpu::Int4GateUp8>(gpu, in, rows_of(in, tokens), in.depth);
  kernel.layer = {.gate = groups_of(gpu, in, 0, 2),
                  .up = groups_of(gpu, in, 2, 2),
                  .out = gpu.output<bf16>(tokens * 16),
                  .out_stride = 16,
                  .num_tokens = static_cast<int32_t>(tokens)};
  gpu.launch(2, kernel);
  return silu_outcome(gpu.read(kernel.layer.out, tokens * 16), columns_of(sums_of(gpu, in), 0, tokens, 0, 16),
                      columns_of(sums_of(gpu, in), 0, tokens, 16, 16), columns_of(in.exact, 0, tokens, 0, 16),
                      columns_of(in.exact, 0, tokens, 16, 16), 16);
}

// Of three experts the second has the rows of 1 token, the third those of 16, in two items. Every expert has the same
// x, and weights of its own.
const std::vector<gpu::ExpertRows> kItems = {{1, 0, 1}, {2, 1, 10}, {2, 10, 17}};

gpu::ExpertList list_of(SimtEmulator& gpu) {
  return {written(gpu, kItems), written(gpu, std::vector<int32_t>{static_cast<int32_t>(kItems.size())})};
}

Outcome run_expert_gate_up(SimtEmulator& gpu, const Matrix& first, const Matrix& second) {
  auto kernel = kernel_of<gpu::Int4ExpertGateUp16>(gpu, first, rows_of(first, 17), first.depth);
  std::vector<int32_t> tokens{3};  // of x, which the matrices have in common
  for (int32_t t = 0; t < 16; ++t) tokens.push_back(16 - t);
  kernel.layer = {
      .list = list_of(gpu), .tokens = written(gpu, tokens), .out = gpu.output<bf16>(17 * 16), .out_features = 16};
  for (int expert = 0; expert < 3; ++expert) {
    kernel.layer.gates.of[expert] = groups_of(gpu, expert == 1 ? first : second, 0, 2);
    kernel.layer.ups.of[expert] = groups_of(gpu, expert == 1 ? first : second, 2, 2);
  }
  gpu.launch(4 * 2, kernel, true);
  std::vector<float> sums[2];
  std::vector<double> exact[2];
  for (size_t row = 0; row < tokens.size(); ++row) {
    const Matrix& in = row == 0 ? first : second;
    for (int part = 0; part < 2; ++part) {
      const auto some = columns_of(sums_of(gpu, in), tokens[row], 1, part * 16, 16);
      sums[part].insert(sums[part].end(), some.begin(), some.end());
      const auto right = columns_of(in.exact, tokens[row], 1, part * 16, 16);
      exact[part].insert(exact[part].end(), right.begin(), right.end());
    }
  }
  return silu_outcome(gpu.read(kernel.layer.out, 17 * 16), sums[0], sums[1], exact[0], exact[1], 16);
}

Outcome run_expert_down(SimtEmulator& gpu, const Matrix& first, const Matrix& second) {
  auto kernel = kernel_of<gpu::Int8ExpertDown16>(gpu, first, rows_of(first, 17), first.depth);
  kernel.layer = {.list = list_of(gpu), .out = gpu.output<bf16>(17 * kColumns), .out_features = kColumns};
  for (int expert = 0; expert < 3; ++expert)
    kernel.layer.weights.of[expert] = groups_of(gpu, expert == 1 ? first : second, 0, 4);
  gpu.launch(4 * 2, kernel, true);
  std::vector<float> sums = columns_of(sums_of(gpu, first), 0, 1, 0, kColumns);
  std::vector<double> exact = columns_of(first.exact, 0, 1, 0, kColumns);
  const auto some = columns_of(sums_of(gpu, second), 1, 16, 0, kColumns);
  sums.insert(sums.end(), some.begin(), some.end());
  const auto right = columns_of(second.exact, 1, 16, 0, kColumns);
  exact.insert(exact.end(), right.begin(), right.end());
  const std::vector<bf16> found = gpu.read(kernel.layer.out, 17 * kColumns);
  return {error_of(found, rounded_all<bf16>(sums), exact, kColumns), kBf16Tolerance, hash_of(found)};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Matrix int4(4, false, 1536), int8(8, false, 1536), short4(4, true, 128), short8(8, true, 640);
  const Matrix one4(4, false, 384, 2), other4(4, false, 384, 3), one8(8, false, 640, 2), other8(8, false, 640, 3);
  const auto of = [](auto run_one, const Matrix& in, int64_t tokens, int64_t extra_slices = 0) {
    return [=, &in](SimtEmulator& gpu) { return run_one(gpu, in, tokens, extra_slices); };
  };
  return prove(
      argc, argv,
      {{"int4, 1 token", of(run<8, 4, bf16>, int4, 1), "int4"},
       {"int8, 1 token", of(run<8, 8, bf16>, int8, 1)},
       {"int4 with halves, 1 unit, 7 tokens", of(run<8, 4, bf16>, short4, 7)},
       {"int8 with halves, 5 units, 32 tokens in f32", of(run<32, 8, float>, short8, 32)},
       {"int4, 16 tokens", of(run<16, 4, bf16>, int4, 16), "int4"},
       {"int4, 9 tokens in room for 32", of(run<32, 4, bf16>, int4, 9), "int4"},
       {"int4, 40 tokens, in slices, and blocks without work", of(run<32, 4, bf16>, int4, 40, 1), "int4"},
       {"int8, 13 tokens, two layers joined", [&](SimtEmulator& gpu) { return run_joined(gpu, int8, 13); }},
       {"int4, 5 tokens, gate and up", [&](SimtEmulator& gpu) { return run_gate_up(gpu, int4, 5); }},
       {"int4, experts' gate and up", [&](SimtEmulator& gpu) { return run_expert_gate_up(gpu, one4, other4); }},
       {"int8, experts' down", [&](SimtEmulator& gpu) { return run_expert_down(gpu, one8, other8); }}});
}
