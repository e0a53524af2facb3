// The proof of cuda/kernels/few_token_experts.h at K = 3,072 (gate and up) and 1,024 (down).
#include "cuda/kernels/few_token_experts.h"

#include "tests/gpu_proof/linear_reference.h"
#include "tests/gpu_proof/written.h"

namespace longcat::gpu {

using ExpertGateUp32 = FewTokenLinear<32, ExpertGateUpLayer>;
using ExpertDown32 = FewTokenLinear<32, ExpertDownLayer>;

}  // namespace longcat::gpu

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::ExpertGateUp32&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::ExpertDown32&, bool);

namespace longcat::emulation {

namespace {

using gpu::ExpertRows;

constexpr int64_t kTokens = 17, kExperts = 5, kColumns = 16;  // two blocks of 8 columns, or two of 16: 32 rows of W
constexpr double kBf16Tolerance = 4e-3;                       // of a row's largest value: 2^-8

struct Experts {
  int64_t depth;
  std::vector<bf16> x;
  std::vector<std::vector<bf16>> w;  // [2 * kColumns, depth] each
  std::vector<Products> products;    // of all tokens
  explicit Experts(int64_t k) : depth(k), x(random_bf16(kTokens * k, 1)) {
    for (int64_t e = 0; e < kExperts; ++e) {
      w.push_back(random_bf16(2 * kColumns * k, static_cast<uint64_t>(10 + e), 0.02f));
      products.push_back(products_of(x, w.back(), k));
    }
  }
};

// The list, and the token of each row in permuted order.
struct Work {
  std::vector<ExpertRows> items;
  std::vector<int32_t> tokens;
};

gpu::ExpertMatrices matrices(SimtEmulator& gpu, const Experts& in, int64_t first_row, int64_t rows) {
  gpu::ExpertMatrices all{};
  size_t expert = 0;
  for (const std::vector<bf16>& w : in.w)
    all.of[expert++] =
        gpu.input(std::vector<bf16>(w.begin() + first_row * in.depth, w.begin() + (first_row + rows) * in.depth));
  return all;
}

// Sums of the listed rows, columns [first, first + count).
template <class T>
std::vector<T> gathered(const Work& work, int64_t first, int64_t count, const auto& of_expert) {
  std::vector<T> all;
  for (const ExpertRows& item : work.items)
    for (int row = item.begin; row < item.end; ++row) {
      const auto& sums = of_expert(item.expert);
      const auto from = sums.begin() + work.tokens[static_cast<size_t>(row)] * 2 * kColumns + first;
      all.insert(all.end(), from, from + count);
    }
  return all;
}

Outcome run_gate_up(SimtEmulator& gpu, const Experts& in, const Work& work) {
  const int64_t rows = static_cast<int64_t>(work.tokens.size());
  gpu::ExpertGateUp32 kernel{.x = gpu.input(in.x), .x_stride = in.depth, .depth = static_cast<int32_t>(in.depth)};
  kernel.layer = {
      .list = {written(gpu, work.items), written(gpu, std::vector<int32_t>{static_cast<int32_t>(work.items.size())})},
      .gates = matrices(gpu, in, 0, kColumns),
      .ups = matrices(gpu, in, kColumns, kColumns),
      .tokens = written(gpu, work.tokens),
      .out = gpu.output<bf16>(rows * kColumns),
      .out_features = kColumns};
  gpu.launch(kExperts * (kColumns / 8), kernel, true);
  const auto chain = [&](int e) -> const auto& {
    return in.products[static_cast<size_t>(e)].chains[static_cast<int>(gpu.arithmetic())];
  };
  const auto exact = [&](int e) -> const auto& { return in.products[static_cast<size_t>(e)].exact; };
  const std::vector<bf16> found = gpu.read(kernel.layer.out, rows * kColumns);
  Outcome outcome = silu_outcome(
      found, gathered<float>(work, 0, kColumns, chain), gathered<float>(work, kColumns, kColumns, chain),
      gathered<double>(work, 0, kColumns, exact), gathered<double>(work, kColumns, kColumns, exact), kColumns);
  outcome.bits = hash_of_bytes(found.data(), kColumns * 2);
  return outcome;
}

// x has a row for each listed row.
Outcome run_down(SimtEmulator& gpu, const Experts& in, const Work& work) {
  const int64_t rows = static_cast<int64_t>(work.tokens.size());
  std::vector<bf16> x;
  for (const int32_t token : work.tokens)
    x.insert(x.end(), in.x.begin() + token * in.depth, in.x.begin() + (token + 1) * in.depth);
  gpu::ExpertDown32 kernel{.x = gpu.input(x), .x_stride = in.depth, .depth = static_cast<int32_t>(in.depth)};
  kernel.layer = {
      .list = {written(gpu, work.items), written(gpu, std::vector<int32_t>{static_cast<int32_t>(work.items.size())})},
      .weights = matrices(gpu, in, 0, 2 * kColumns),
      .out = gpu.output<bf16>(rows * 2 * kColumns),
      .out_features = 2 * kColumns};
  gpu.launch(kExperts * 2, kernel, true);
  const std::vector<bf16> found = gpu.read(kernel.layer.out, rows * 2 * kColumns);
  std::vector<bf16> chain;
  for (const float sum : gathered<float>(work, 0, 2 * kColumns, [&](int e) -> const auto& {
         return in.products[static_cast<size_t>(e)].chains[static_cast<int>(gpu.arithmetic())];
       }))
    chain.push_back(to_bf16(sum));
  const std::vector<double> exact = gathered<double>(
      work, 0, 2 * kColumns, [&](int e) -> const auto& { return in.products[static_cast<size_t>(e)].exact; });
  return {error_of(found, chain, exact, 2 * kColumns), kBf16Tolerance, hash_of_bytes(found.data(), 2 * kColumns * 2)};
}

// Expert 0 has no rows, 1 has one, 2 has 16, 4 has all 17.
Work all_sizes() {
  Work work{.items = {{1, 0, 1}, {2, 1, 17}, {4, 17, 34}}, .tokens = {5}};
  for (int32_t t = 1; t < kTokens; ++t) work.tokens.push_back(t);
  for (int32_t t = 0; t < kTokens; ++t) work.tokens.push_back(t);
  return work;
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Experts hidden(3072), inner(1024);
  const Work one{.items = {{1, 0, 1}}, .tokens = {5}}, all = all_sizes();
  return prove(argc, argv,
               {{"down, 1 row", [&](SimtEmulator& gpu) { return run_down(gpu, inner, one); }, "down"},
                {"gate and up, 1 row", [&](SimtEmulator& gpu) { return run_gate_up(gpu, hidden, one); }, "gate and up"},
                {"down, 0, 1, 16 and 17 rows", [&](SimtEmulator& gpu) { return run_down(gpu, inner, all); }, "down"},
                {"gate and up, 0, 1, 16 and 17 rows", [&](SimtEmulator& gpu) { return run_gate_up(gpu, hidden, all); },
                 "gate and up"}});
}
