// A kernel for the proof of GateUpStore: products by mma.sync, whose fragments lie as those of wgmma.
#pragma once

#include "cuda/kernels/gate_up_store.h"

namespace longcat::gpu {

// A block has 64 features, of which a warp has 16, and the tokens of x's rows [first_row, first_row + count).
template <int kTokens>
struct GateUpProducts {
  static constexpr int kThreads = 128;
  static constexpr uint32_t kSharedBytes = 16;
  GateUpStore result;
  const bf16* x;            // [first_row + kTokens, depth]
  const bf16 *gates, *ups;  // [features, depth], a multiple of 16
  int32_t depth, first_row, count;

  LC_HD void operator()(uint32_t) const {
    const int feature = static_cast<int>(block_idx()) * 64 + warp_idx() * 16, g = lane_idx() / 4,
              t = lane_idx() % 4 * 2;
    float sums[2][kTokens / 8][4] = {};
    const auto pair = [&](const bf16* of, int64_t row, int k) {
      return load_global(reinterpret_cast<const uint32_t*>(of + row * depth + k));
    };
    if (feature < result.features)
      for (int k = 0; k < depth; k += 16)
        for (int m = 0; m < 2; ++m) {
          const bf16* const w = m ? ups : gates;
          const bool upper = feature + 8 < result.features;
          const int64_t row = feature + g, next = upper ? row + 8 : row;
          const uint32_t a[4] = {pair(w, row, k + t), pair(w, next, k + t), pair(w, row, k + t + 8),
                                 pair(w, next, k + t + 8)};
          for (int n = 0; n < kTokens / 8; ++n)
            mma_bf16(sums[m][n], a, pair(x, first_row + n * 8 + g, k + t), pair(x, first_row + n * 8 + g, k + t + 8));
        }
    result.store<kTokens>(feature, first_row, count, [&](bool up, int n, int i) { return sums[up][n][i]; });
  }
};

}  // namespace longcat::gpu
