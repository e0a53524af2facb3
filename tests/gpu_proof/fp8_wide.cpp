// The proof of cuda/kernels/fp8_wide.h: against float64, and bit for bit against its arithmetic written plainly, which
// is that of Fp8Linear.
#include "cuda/kernels/fp8_wide.h"

#include "tests/gpu_proof/fp8_matrix.h"
#include "tests/gpu_proof/written.h"

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8Wide<longcat::bf16>&,
                                                              bool);
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::Fp8Wide<float>&, bool);

namespace longcat::emulation {

namespace {

constexpr int64_t kRows = 192;  // three blocks of 64; the last has other scales

// x is what a grid before has written. The bits are of token 0.
template <class Out>
Outcome run(SimtEmulator& gpu, const Fp8Matrix& in, int64_t tokens) {
  constexpr int64_t kPadding = 8;
  std::vector<bf16> x;  // rows farther apart than they need be
  for (int64_t t = 0; t < tokens; ++t) {
    x.insert(x.end(), in.x.begin() + t * in.depth, in.x.begin() + (t + 1) * in.depth);
    x.insert(x.end(), kPadding, to_bf16(1e30f));
  }
  const int64_t slices = (tokens + 63) / 64;
  const gpu::Fp8Wide<Out> kernel{.x = written(gpu, x),
                                 .x_stride = in.depth + kPadding,
                                 .matrix = gpu.input(in.codes),
                                 .scales = {.at = in.scales_at, .row_blocks = 2},
                                 .out = gpu.output<Out>(tokens * kRows),
                                 .out_stride = kRows,
                                 .depth = static_cast<int32_t>(in.depth),
                                 .num_tokens = static_cast<int32_t>(tokens),
                                 .slices = static_cast<int32_t>(slices)};
  gpu.launch(slices * (kRows / 64), kernel, true);
  std::vector<Out> found;
  for (int64_t t = 0; t < tokens; ++t) {
    const std::vector<Out> row = gpu.read(kernel.out + t * kRows + kFirstProven, kProvenRows);
    found.insert(found.end(), row.begin(), row.end());
  }
  const std::vector<Out> chain = rounded_all<Out>(part_of(sums_of(gpu, in), 0, tokens, 0, kProvenRows));
  return {error_of(found, chain, part_of(in.exact, 0, tokens, 0, kProvenRows), kProvenRows),
          sizeof(Out) == 2 ? kBf16Tolerance : kF32Tolerance,
          hash_of_bytes(found.data(), kProvenRows * static_cast<int64_t>(sizeof(Out)))};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Fp8Matrix seven(kRows, 7 * 128, 70, 1), one(kRows, 128, 64, 2);
  return prove(argc, argv,
               {{"1 token", [&](SimtEmulator& gpu) { return run<bf16>(gpu, seven, 1); }, "row 0"},
                {"70 tokens, two slices", [&](SimtEmulator& gpu) { return run<bf16>(gpu, seven, 70); }, "row 0"},
                {"1 unit, 64 tokens in f32", [&](SimtEmulator& gpu) { return run<float>(gpu, one, 64); }}});
}
