// The proof of cuda/kernels/mla_decode.h against float64, at the real sizes of a tile.
#include "cuda/kernels/mla_decode.h"

#include <algorithm>
#include <cmath>

#include "cuda/emulation/proof.h"

// Compiled apart, since mutations change it.
extern template void longcat::emulation::SimtEmulator::launch(int64_t, const longcat::gpu::MlaDecode&, bool);

namespace longcat::emulation {

namespace {

using gpu::MlaDecode;
using gpu::MlaPiece;

constexpr int kHeads = 32, kLora = 512, kRope = 64, kDim = kLora + kRope, kBlock = 64;
constexpr int kTokens = 3, kTableStride = 8, kCacheBlocks = 24;
// A weight of P has 8 bits: 2^-9 of the largest value at most, and a half of that for the sum of many.
constexpr double kTolerance = 4e-3;
constexpr float kScale = 0.0721688f;  // 1 / sqrt(192)

struct Inputs {
  std::vector<bf16> q_latent = random_bf16(kTokens * kHeads * kLora, 1);
  std::vector<bf16> q_rope = random_bf16(kTokens * kHeads * kRope, 2);
  std::vector<bf16> latents = random_bf16(int64_t{kCacheBlocks} * kBlock * kDim, 3, 0.5f);
  std::vector<int32_t> block_tables = std::vector<int32_t>(kTokens * kTableStride);
  Inputs() {
    for (int i = 0; i < kTokens * kTableStride; ++i) block_tables[static_cast<size_t>(i)] = (i * 7 + 5) % kCacheBlocks;
    // Position 3 of token 0 is four times a query. Its score is so far above all later ones that a running maximum
    // overflows where it is not kept.
    bf16* const row = &latents[static_cast<size_t>((block_tables[0] * kBlock + 3) * kDim)];
    for (int k = 0; k < kDim; ++k) {
      const bf16 q = k < kLora ? q_latent[static_cast<size_t>(k)] : q_rope[static_cast<size_t>(k - kLora)];
      row[k] = to_bf16(4 * to_float(q));
    }
  }
};

// The f64 result of one piece: [kHeads, kLora], the weighted mean.
std::vector<double> expected_mean(const Inputs& in, const MlaPiece& piece) {
  std::vector<double> mean(kHeads * kLora);
  for (int head = 0; head < kHeads; ++head) {
    std::vector<double> scores;
    const auto row = [&](int position) {
      const int64_t block = in.block_tables[static_cast<size_t>(piece.token * kTableStride + position / kBlock)];
      return &in.latents[static_cast<size_t>((block * kBlock + position % kBlock) * kDim)];
    };
    const bf16* latent = &in.q_latent[static_cast<size_t>((piece.token * kHeads + head) * kLora)];
    const bf16* rope = &in.q_rope[static_cast<size_t>((piece.token * kHeads + head) * kRope)];
    double most = -1e300, total = 0;
    for (int p = piece.begin; p < piece.end; ++p) {
      double score = 0;
      for (int k = 0; k < kDim; ++k)
        score += double{to_float(k < kLora ? latent[k] : rope[k - kLora])} * to_float(row(p)[k]);
      scores.push_back(score * kScale);
      most = std::max(most, scores.back());
    }
    double* out = &mean[static_cast<size_t>(head * kLora)];
    for (int p = piece.begin; p < piece.end; ++p) {
      const double weight = std::exp(scores[static_cast<size_t>(p - piece.begin)] - most);
      total += weight;
      for (int k = 0; k < kLora; ++k) out[k] += weight * to_float(row(p)[k]);
    }
    for (int k = 0; k < kLora; ++k) out[k] /= total;
  }
  return mean;
}

// Runs `pieces`, and gives the bits of the first.
Outcome run(SimtEmulator& gpu, const Inputs& in, const std::vector<MlaPiece>& pieces) {
  const int64_t count = static_cast<int64_t>(pieces.size());
  MlaDecode kernel{.q_latent = gpu.input(in.q_latent),
                   .q_rope = gpu.input(in.q_rope),
                   .latents = gpu.input(in.latents),
                   .block_tables = gpu.input(in.block_tables),
                   .pieces = gpu.input(pieces),
                   .sums = gpu.output<float>(count * kHeads * kLora),
                   .maxima = gpu.output<float>(count * kHeads),
                   .weights = gpu.output<float>(count * kHeads),
                   .block_table_stride = kTableStride,
                   .scale_log2 = kScale * 1.44269504f};
  gpu.launch(count, kernel);
  std::vector<float> sums = gpu.read(kernel.sums, count * kHeads * kLora);
  const std::vector<float> maxima = gpu.read(kernel.maxima, count * kHeads);
  const std::vector<float> weights = gpu.read(kernel.weights, count * kHeads);
  const uint64_t bits = hash_of_bytes(sums.data(), kHeads * kLora * 4) ^ hash_of_bytes(maxima.data(), kHeads * 4) * 3 ^
                        hash_of_bytes(weights.data(), kHeads * 4) * 5;
  double error = 0;
  for (int64_t piece = 0; piece < count; ++piece) {
    const std::vector<double> mean = expected_mean(in, pieces[static_cast<size_t>(piece)]);
    for (int64_t head = piece * kHeads; head < (piece + 1) * kHeads; ++head) {
      float* const row = &sums[static_cast<size_t>(head * kLora)];
      for (int k = 0; k < kLora; ++k) row[k] /= weights[static_cast<size_t>(head)];
      const double one = row_error(row, &mean[static_cast<size_t>((head - piece * kHeads) * kLora)], kLora);
      if (std::isnan(one)) return {one, kTolerance, bits};
      error = std::max(error, one);
    }
  }
  return {error, kTolerance, bits};
}

}  // namespace

}  // namespace longcat::emulation

int main(int argc, char** argv) {
  using namespace longcat;
  using namespace longcat::emulation;
  const Inputs in;
  const auto of = [&](std::vector<MlaPiece> pieces) {
    return [&in, pieces](SimtEmulator& gpu) { return run(gpu, in, pieces); };
  };
  return prove(argc, argv,
               {{"a piece of 129 positions, behind others", of({{1, 128, 257}})},
                {"1 token", of({{0, 0, 1}})},
                {"127 positions", of({{2, 0, 127}}), "127"},
                {"127 positions beside others", of({{2, 0, 127}, {0, 64, 65}, {1, 0, 200}}), "127"},
                {"128 positions", of({{0, 128, 256}})},
                {"129 positions", of({{1, 0, 129}})},
                {"scores that fall", of({{0, 0, 129}})}});
}
