// The proof of cuda/kernels/gate_up_store.h: what becomes of a warp's products.
#include "cuda/kernels/gate_up_store.h"

#include "tests/gpu_proof/gate_up_products.h"
#include "tests/gpu_proof/linear_reference.h"

// Compiled apart, since mutations change them.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::GateUpProducts<16>&, bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::GateUpProducts<64>&, bool);

namespace longcat::emulation {

namespace {

constexpr int64_t kDepth = 64, kRows = 80;

// x, and the products of all rows with gates and ups of some features.
struct Layer {
  int64_t features;
  std::vector<bf16> x, gates, ups;
  Products gate, up;
  explicit Layer(int64_t features_)
      : features(features_),
        x(random_bf16(kRows * kDepth, 1)),
        gates(random_bf16(features_ * kDepth, 2, 0.2f)),
        ups(random_bf16(features_ * kDepth, 3, 0.2f)),
        gate(products_of(x, gates, kDepth)),
        up(products_of(x, ups, kDepth)) {}
};

// Rows [first, first + count) of x. The other rows of the result, and what lies behind a row's features, stay.
template <int kTokens>
Outcome run(SimtEmulator& gpu, const Layer& in, int first, int count) {
  const int64_t stride = in.features + 8;
  const std::vector<bf16> before(static_cast<size_t>(kRows * stride), bf16{0x1234});
  gpu::GateUpProducts<kTokens> kernel{
      .result = {gpu.buffer(before), stride, static_cast<int32_t>(in.features)},
      .x = gpu.input(in.x),
      .gates = gpu.input(in.gates),
      .ups = gpu.input(in.ups),
      .depth = static_cast<int32_t>(kDepth),
      .first_row = first,
      .count = count,
  };
  gpu.launch((in.features + 63) / 64, kernel);
  const std::vector<bf16> all = gpu.read(kernel.result.out, kRows * stride);
  std::vector<bf16> found;
  bool stays = true;
  for (int64_t row = 0; row < kRows; ++row)
    for (int64_t k = 0; k < stride; ++k) {
      const bf16 value = all[static_cast<size_t>(row * stride + k)];
      const bool is_result = row >= first && row < first + count && k < in.features;
      if (is_result) found.push_back(value);
      if (!is_result && value.bits != before[0].bits) stays = false;
    }
  const auto part = [&](const auto& values) {
    return std::vector(values.begin() + first * in.features, values.begin() + (first + count) * in.features);
  };
  const int arithmetic = static_cast<int>(gpu.arithmetic());
  Outcome outcome = silu_outcome(found, part(in.gate.chains[arithmetic]), part(in.up.chains[arithmetic]),
                                 part(in.gate.exact), part(in.up.exact), in.features);
  if (!stays) outcome.error = 1e9;
  outcome.bits = hash_of_bytes(found.data() + (5 - first) * in.features, in.features * 2);
  return outcome;
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat::emulation;
  const Layer narrow(64), odd(88);
  return prove(argc, argv,
               {{"64 features, 1 row", [&](SimtEmulator& gpu) { return run<16>(gpu, narrow, 5, 1); }, "row 5 of 64"},
                {"64 features, 13 rows", [&](SimtEmulator& gpu) { return run<16>(gpu, narrow, 0, 13); }, "row 5 of 64"},
                {"64 features, 64 rows", [&](SimtEmulator& gpu) { return run<64>(gpu, narrow, 3, 64); }, "row 5 of 64"},
                {"88 features, 8 rows", [&](SimtEmulator& gpu) { return run<16>(gpu, odd, 5, 8); }, "row 5 of 88"},
                {"88 features, 57 rows", [&](SimtEmulator& gpu) { return run<64>(gpu, odd, 1, 57); }, "row 5 of 88"}});
}
