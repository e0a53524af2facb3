// The proof of cuda/kernels/fp8_linear.h: against float64, and bit for bit against its arithmetic written plainly.
#include "cuda/kernels/fp8_linear.h"

#include "cuda/kernels/few_token_experts.h"
#include "tests/gpu_proof/fp8_matrix.h"
#include "tests/gpu_proof/late_rows.h"
#include "tests/gpu_proof/written.h"

namespace longcat::gpu {

using Fp8Linear8 = Fp8Linear<8, LateRows<bf16>>;
using Fp8Linear16 = Fp8Linear<16, LateRows<bf16>>;
using Fp8Linear32 = Fp8Linear<32, LateRows<bf16>>;
using Fp8LinearF32 = Fp8Linear<32, LateRows<float>>;
using Fp8Joined16 = Fp8Linear<16, JoinedLayer>;
using Fp8GateUp8 = Fp8Linear<8, GateUpLayer>;
using Fp8ExpertGateUp16 = Fp8Linear<16, ExpertGateUpLayer>;
using Fp8ExpertDown16 = Fp8Linear<16, ExpertDownLayer>;

}  // namespace longcat::gpu

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8Linear8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8Linear16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8Linear32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8LinearF32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8Joined16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8GateUp8&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8ExpertGateUp16&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8ExpertDown16&, bool);

namespace longcat::emulation {

namespace {

constexpr int64_t kRows = 144, kFirstRow = kFirstProven, kColumns = kProvenRows;

const bf16* matrix_of(SimtEmulator& gpu, const Fp8Matrix& in) {
  return reinterpret_cast<const bf16*>(gpu.input(in.codes));
}

template <class Kernel>
Kernel kernel_of(SimtEmulator& gpu, const Fp8Matrix& in, const std::vector<bf16>& x, int64_t x_stride) {
  const gpu::Fp8Scales scales{.at = in.scales_at, .row_blocks = 2};
  return {.x = gpu.input(x), .x_stride = x_stride, .depth = static_cast<int32_t>(in.depth), .scales = {scales, scales}};
}

std::vector<bf16> rows_of(const Fp8Matrix& in, int64_t tokens) {
  return std::vector<bf16>(in.x.begin(), in.x.begin() + tokens * in.depth);
}

// Of [tokens, kRows] results, those that are proven. The others are results of other rows, and not looked at.
template <class Out>
std::vector<Out> proven(const std::vector<Out>& all, int64_t tokens, int64_t first = kFirstRow,
                        int64_t count = kColumns) {
  std::vector<Out> some;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto row = all.begin() + t * kRows + first;
    some.insert(some.end(), row, row + count);
  }
  return some;
}

// The bits are of token 0, so that all numbers of tokens and kTokens agree. extra_slices: blocks without work.
template <int kTokens, class Out>
Outcome run(SimtEmulator& gpu, const Fp8Matrix& in, int64_t tokens, int64_t extra_slices = 0) {
  constexpr int64_t kPadding = 8;
  std::vector<bf16> x;  // rows farther apart than they need be
  for (int64_t t = 0; t < tokens; ++t) {
    x.insert(x.end(), in.x.begin() + t * in.depth, in.x.begin() + (t + 1) * in.depth);
    x.insert(x.end(), kPadding, to_bf16(1e30f));
  }
  auto kernel = kernel_of<gpu::Fp8Linear<kTokens, gpu::LateRows<Out>>>(gpu, in, x, in.depth + kPadding);
  kernel.layer = {{.weight = matrix_of(gpu, in),
                   .plane_stride = 0,
                   .out = gpu.output<Out>(tokens * kRows),
                   .out_stride = kRows,
                   .tiles = kColumns / 16,
                   .num_tokens = static_cast<int32_t>(tokens)}};
  gpu.launch(((tokens + 31) / 32 + extra_slices) * (kColumns / 16), kernel, extra_slices > 0);
  std::vector<Out> found;
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<Out> row = gpu.read(kernel.layer.out + t * kRows + kFirstRow, kColumns);
    found.insert(found.end(), row.begin(), row.end());
  }
  const std::vector<Out> chain = rounded_all<Out>(part_of(sums_of(gpu, in), 0, tokens, 0, kColumns));
  return {error_of(found, chain, part_of(in.exact, 0, tokens, 0, kColumns), kColumns),
          sizeof(Out) == 2 ? kBf16Tolerance : kF32Tolerance,
          hash_of_bytes(found.data(), kColumns * static_cast<int64_t>(sizeof(Out)))};
}

// The first layer has 128 rows of the matrix, with scales of their own; the second all. x is what a grid before has
// written.
Outcome run_joined(SimtEmulator& gpu, const Fp8Matrix& in, int64_t tokens) {
  auto kernel = kernel_of<gpu::Fp8Joined16>(gpu, in, {to_bf16(0)}, in.depth);
  kernel.x = written(gpu, rows_of(in, tokens));
  std::vector<uint8_t> first(in.codes.begin(), in.codes.begin() + 128 * in.depth);
  kernel.scales[0] = {.at = static_cast<int64_t>(first.size()), .row_blocks = 1};
  for (int64_t unit = 0; unit < in.depth / 128; ++unit) {
    const auto of_unit = in.codes.begin() + in.scales_at + unit * 8;
    first.insert(first.end(), of_unit, of_unit + 4);
  }
  kernel.layer = {.weights = {reinterpret_cast<const bf16*>(gpu.input(first)), matrix_of(gpu, in)},
                  .outs = {gpu.output<bf16>(tokens * kRows), gpu.output<bf16>(tokens * kRows)},
                  .out_strides = {kRows, kRows},
                  .tiles = 128 / 16,
                  .num_tokens = static_cast<int32_t>(tokens)};
  gpu.launch((128 + kRows) / 16, kernel, true);
  std::vector<bf16> found = proven(gpu.read(kernel.layer.outs[1], tokens * kRows), tokens);
  std::vector<float> sums = part_of(sums_of(gpu, in), 0, tokens, 0, kColumns);
  std::vector<double> exact = part_of(in.exact, 0, tokens, 0, kColumns);
  // Rows 112 to 127 once more, of the first layer; the columns behind are not written.
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<bf16> row = gpu.read(kernel.layer.outs[0] + t * kRows + kFirstRow, 16);
    const std::vector<bf16> expected = rounded_all<bf16>(part_of(sums, t, 1, 0, 16));
    if (std::memcmp(row.data(), expected.data(), 32) != 0)
      return {std::numeric_limits<double>::infinity(), kBf16Tolerance, 0};
  }
  return {error_of(found, rounded_all<bf16>(sums), exact, kColumns), kBf16Tolerance, hash_of(found)};
}

// Gate is one matrix, up another: 8 rows of each are those of a block.
Outcome run_gate_up(SimtEmulator& gpu, const Fp8Matrix& gate, const Fp8Matrix& up, int64_t tokens) {
  auto kernel = kernel_of<gpu::Fp8GateUp8>(gpu, gate, rows_of(gate, tokens), gate.depth);
  kernel.layer = {.gate = matrix_of(gpu, gate),
                  .up = matrix_of(gpu, up),
                  .out = gpu.output<bf16>(tokens * kRows),
                  .out_stride = kRows,
                  .num_tokens = static_cast<int32_t>(tokens)};
  gpu.launch(kRows / 8, kernel);
  return silu_outcome(proven(gpu.read(kernel.layer.out, tokens * kRows), tokens),
                      part_of(sums_of(gpu, gate), 0, tokens, 0, kColumns),
                      part_of(sums_of(gpu, up), 0, tokens, 0, kColumns), part_of(gate.exact, 0, tokens, 0, kColumns),
                      part_of(up.exact, 0, tokens, 0, kColumns), kColumns);
}

// Of three experts the second has the rows of 1 token, the third those of 16, in two items. Every expert has the same
// x, and weights of its own.
const std::vector<gpu::ExpertRows> kItems = {{1, 0, 1}, {2, 1, 10}, {2, 10, 17}};

gpu::ExpertList list_of(SimtEmulator& gpu) {
  return {written(gpu, kItems), written(gpu, std::vector<int32_t>{static_cast<int32_t>(kItems.size())})};
}

// Appends what `of` has for a token.
template <class T>
void append(std::vector<T>& to, const std::vector<T>& of, int64_t token) {
  const std::vector<T> row = part_of(of, token, 1, 0, kColumns);
  to.insert(to.end(), row.begin(), row.end());
}

Outcome run_expert_gate_up(SimtEmulator& gpu, const Fp8Matrix& first, const Fp8Matrix& second) {
  auto kernel = kernel_of<gpu::Fp8ExpertGateUp16>(gpu, first, rows_of(first, 17), first.depth);
  std::vector<int32_t> tokens{3};  // of x, which the matrices have in common
  for (int32_t t = 0; t < 16; ++t) tokens.push_back(16 - t);
  kernel.layer = {
      .list = list_of(gpu), .tokens = written(gpu, tokens), .out = gpu.output<bf16>(17 * kRows), .out_features = kRows};
  for (int expert = 0; expert < 3; ++expert) {
    kernel.layer.gates.of[expert] = matrix_of(gpu, expert == 1 ? first : second);
    kernel.layer.ups.of[expert] = matrix_of(gpu, expert == 1 ? second : first);
  }
  gpu.launch(4 * (kRows / 8), kernel, true);
  std::vector<float> gates, ups;
  std::vector<double> exact_gates, exact_ups;
  for (size_t row = 0; row < tokens.size(); ++row) {
    const Fp8Matrix &gate = row == 0 ? first : second, &up = row == 0 ? second : first;
    append(gates, sums_of(gpu, gate), tokens[row]);
    append(ups, sums_of(gpu, up), tokens[row]);
    append(exact_gates, gate.exact, tokens[row]);
    append(exact_ups, up.exact, tokens[row]);
  }
  return silu_outcome(proven(gpu.read(kernel.layer.out, 17 * kRows), 17), gates, ups, exact_gates, exact_ups, kColumns);
}

Outcome run_expert_down(SimtEmulator& gpu, const Fp8Matrix& first, const Fp8Matrix& second) {
  auto kernel = kernel_of<gpu::Fp8ExpertDown16>(gpu, first, rows_of(first, 17), first.depth);
  kernel.layer = {.list = list_of(gpu), .out = gpu.output<bf16>(17 * kRows), .out_features = kRows};
  for (int expert = 0; expert < 3; ++expert)
    kernel.layer.weights.of[expert] = matrix_of(gpu, expert == 1 ? first : second);
  gpu.launch(4 * (kRows / 16), kernel, true);
  std::vector<float> sums;
  std::vector<double> exact;
  for (int64_t row = 0; row < 17; ++row) {
    append(sums, sums_of(gpu, row == 0 ? first : second), row);
    append(exact, (row == 0 ? first : second).exact, row);
  }
  const std::vector<bf16> found = proven(gpu.read(kernel.layer.out, 17 * kRows), 17);
  return {error_of(found, rounded_all<bf16>(sums), exact, kColumns), kBf16Tolerance, hash_of(found)};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Fp8Matrix whole(kRows, 21 * 128, 40, 1), one_unit(kRows, 128, 7, 1), five(kRows, 640, 32, 2),
      other_five(kRows, 640, 32, 3);
  const auto of = [](auto run_one, const Fp8Matrix& in, int64_t tokens, int64_t extra_slices = 0) {
    return [=, &in](SimtEmulator& gpu) { return run_one(gpu, in, tokens, extra_slices); };
  };
  return prove(argc, argv,
               {{"1 token", of(run<8, bf16>, whole, 1), "row 0"},
                {"1 unit, 7 tokens", of(run<8, bf16>, one_unit, 7)},
                {"5 units, 32 tokens in f32", of(run<32, float>, five, 32)},
                {"16 tokens", of(run<16, bf16>, whole, 16), "row 0"},
                {"9 tokens in room for 32", of(run<32, bf16>, whole, 9), "row 0"},
                {"40 tokens, in slices, and blocks without work", of(run<32, bf16>, whole, 40, 1), "row 0"},
                {"13 tokens, two layers joined", [&](SimtEmulator& gpu) { return run_joined(gpu, five, 13); }},
                {"5 tokens, gate and up", [&](SimtEmulator& gpu) { return run_gate_up(gpu, five, other_five, 5); }},
                {"experts' gate and up", [&](SimtEmulator& gpu) { return run_expert_gate_up(gpu, five, other_five); }},
                {"experts' down", [&](SimtEmulator& gpu) { return run_expert_down(gpu, five, other_five); }}});
}
