// The end of a joined gate and up layer on tensor cores: out = silu(gate) * up for 16 features and some tokens a warp.
//
// A warp has fragments of products as mma.sync m16n8 and wgmma m64nN leave them: lane l has features l / 4 and l / 4 +
// 8 of tokens 2 (l % 4) and the next, of each 8 tokens. In memory the features of a token lie side by side. So each 8 x
// 8 results are transposed between the lanes, and four lanes write 32 bytes side by side (store_pairs.h).
#pragma once

#include "cuda/kernels/few_token_layers.h"
#include "cuda/kernels/store_pairs.h"

namespace longcat::gpu {

struct GateUpStore {
  bf16* out;           // [rows, out_features]
  int64_t out_stride;  // [elements], a multiple of 4; out is aligned to 8 bytes
  int32_t features;    // out_features, a multiple of 8

  // value(up, n, i): value i of the fragment of the tokens [8 n, 8 n + 8), of gate or of up. The warp has the features
  // from `feature` on, a multiple of 16, and the tokens of rows [row, row + count) of out. Collective.
  template <int kTokens, class Value>
  LC_HD void store(int32_t feature, int64_t row, int32_t count, const Value& value) const {
    const int token = lane_idx() / 4;
    const bool is_here = feature + lane_idx() % 2 * 8 < features;  // odd lanes store the upper 8 features
    LC_UNROLL for (int n = 0; n < kTokens / 8; ++n) {
      uint32_t pairs[2];  // of the lower and the upper 8 features: two that lie side by side, of one token
      LC_UNROLL for (int h = 0; h < 2; ++h) {
        float results[2];
        LC_UNROLL for (int i = 0; i < 2; ++i) results[i] =
            silu_mul(value(false, n, 2 * h + i), value(true, n, 2 * h + i));
        pairs[h] = transpose(pack_bf16(results[0], results[1]));
      }
      store_pairs(out + (row + n * 8 + token) * out_stride, feature, pairs[0], pairs[1],
                  n * 8 + token < count && is_here);
    }
  }
};

}  // namespace longcat::gpu
