// Linear layers of many tokens whose weights are e4m3 codes with a scale for 128 x 128 values, and whose inputs stay
// bf16: y[T, N] = x[T, K] W[N, K]^T, with the bits of Fp8Linear.
//
// One block has 64 rows of W and up to 64 tokens, so 3 bytes come from the L2 cache for 64 multiply-adds, a third of
// what Fp8Linear needs. Warp w has the rows 16 w to 16 w + 15 and all tokens. A ring of stages is shared: a unit of 128
// columns (fp8_units.h) of all rows and tokens. Blocks of the same rows follow each other, so W comes from memory once.
#pragma once

#include "cuda/kernels/few_token_layers.h"
#include "cuda/kernels/fp8_units.h"

namespace longcat::gpu {

using namespace simt;

template <class Out>
struct Fp8Wide {
  static constexpr int kThreads = 128, kWarps = kThreads / 32, kRows = kWarps * 16, kTokens = 64, kTiles = kTokens / 8;
  static constexpr int kTilesOfWarp = kTiles / kWarps;  // whose inputs a warp copies
  static constexpr int kMostUnits = kThreads;           // a thread loads the scale of one

  // Layout of the shared memory [bytes]: stages, each the codes of the warps and the inputs of the tiles. Then
  // a scale of each unit, since the rows are of one block of 128.
  static constexpr uint32_t kInputsAt = kWarps * kFp8Codes, kStage = kInputsAt + kTiles * kFp8Inputs;
  static constexpr int kStages = 4;
  static constexpr uint32_t kScalesAt = kStages * kStage, kSharedBytes = kScalesAt + kMostUnits * 4;
  static_assert(kSharedBytes <= 99 * 1024, "what a block has at most on 8.6, 8.9 and 12.0");

  const bf16* x;                // [num_tokens, depth]
  int64_t x_stride;             // [elements], a multiple of 8
  const unsigned char* matrix;  // [out_features, depth] codes; out_features is a multiple of kRows
  Fp8Scales scales;
  Out* out;            // [num_tokens, out_features]
  int64_t out_stride;  // [elements]
  int32_t depth;       // K, a multiple of 128, at most kMostUnits of them
  int32_t num_tokens;
  int32_t slices;  // of kTokens. Grid: slices * out_features / kRows

  LC_HD void copy_stage(uint32_t stage, const unsigned char* const (&rows)[2], const int64_t (&starts)[kTilesOfWarp],
                        int first_token, int unit) const {
    copy_fp8_codes(stage + warp_idx() * kFp8Codes, rows, depth, unit);
    LC_UNROLL for (int i = 0; i < kTilesOfWarp; ++i) {
      const int tile = warp_idx() * kTilesOfWarp + i;
      copy_fp8_inputs(stage + kInputsAt + tile * kFp8Inputs, x + starts[i],
                      first_token + tile * 8 + lane_idx() / 4 < num_tokens, unit);
    }
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    const int lane = lane_idx(), warp = warp_idx(), units = depth / kFp8Columns;
    const int64_t first_row = block_idx() / slices * kRows;
    const int first_token = static_cast<int>(block_idx() % slices) * kTokens;
    const unsigned char* const first = matrix + (first_row + warp * 16) * depth;
    const unsigned char* const rows[2] = {first, first + 8 * int64_t{depth}};
    float of_unit = 0;
    if (thread_idx() < units) of_unit = scales.of(matrix, first_row, thread_idx());
    int64_t starts[kTilesOfWarp];  // of the rows of x that this lane copies
    LC_UNROLL for (int i = 0; i < kTilesOfWarp; ++i) {
      const int token = first_token + (warp * kTilesOfWarp + i) * 8 + lane / 4;
      starts[i] = token < num_tokens ? token * x_stride : 0;
    }
    wait_for_prior_grid();
    LC_UNROLL_BY(1) for (int s = 0; s < kStages - 1; ++s) {
      if (s < units) copy_stage(shared + s * kStage, rows, starts, first_token, s);
      cp_async_commit();
    }
    if (thread_idx() < units) store_shared(shared + kScalesAt + thread_idx() * 4, of_unit);

    float sums[kTiles][4] = {};
    uint32_t stage = shared, free_stage = shared + (kStages - 1) * kStage;
    LC_UNROLL_BY(1) for (int unit = 0; unit < units; ++unit) {
      cp_async_wait<kStages - 2>();
      sync_threads();  // this stage has arrived, and the one before is free
      if (unit + kStages - 1 < units) copy_stage(free_stage, rows, starts, first_token, unit + kStages - 1);
      cp_async_commit();
      float products[kTiles][4] = {};
      multiply_fp8(products, stage + warp * kFp8Codes, stage + kInputsAt);
      const float scale = load_shared<float>(shared + kScalesAt + unit * 4);
      LC_UNROLL for (int n = 0; n < kTiles; ++n) LC_UNROLL for (int i = 0; i < 4; ++i) sums[n][i] =
          fma_rn(scale, products[n][i], sums[n][i]);
      free_stage = stage;
      stage = stage + kStage < shared + kScalesAt ? stage + kStage : shared;
    }

    LC_UNROLL for (int n = 0; n < kTiles; ++n) LC_UNROLL for (int i = 0; i < 2; ++i) {
      const int token = first_token + n * 8 + 2 * (lane % 4) + i;
      if (token >= num_tokens) continue;
      Out* const to = out + token * out_stride + first_row + warp * 16 + lane / 4;
      store_global(to, as<Out>(sums[n][i]));
      store_global(to + 8, as<Out>(sums[n][i + 2]));
    }
  }
};

}  // namespace longcat::gpu
