// Linear layers of 1 to 64 tokens on tensor cores: y[T, N] = x[T, K] W[N, K]^T, bf16 with f32 accumulators.
//
// Bound by the weights, which are read once. One block has 16 rows of W and all tokens, so that every layer has blocks
// for all SMs without a cut of K. The weights are the A of m16n8k16, 8 tokens are its B. Each result is one chain: K
// ascending, one accumulator. So its bits depend neither on T nor on kTokens, and equal hopper_chain() on 9.0.
//
// 4 warps copy: a ring of stages, each 128 values of K of the 16 rows and of the tokens, 96 KiB at most. So two blocks
// fit on an SM of 9.0, and 140 KiB or more are under way there. Warp w multiplies the tokens [8 w, 8 w + 8), or twice
// as many where kTokens is 64. Rows of shared memory are 16 bytes longer than they need be: no bank conflicts.
//
// A layer (few_token_layers.h, few_token_experts.h) says what the 16 rows are, and what becomes of the results. It has:
// - tile(depth): the block's work.
// - input_row(tile, i): the row of x for the tile's token i.
// - store(tile, i, r, low, high): takes the results of rows r and r + 8 for token i.
// - kPlanes: W is the sum of kPlanes matrices, plane_stride elements apart.
// - kRowsApart: 8 where the tile's two groups of 8 rows follow each other in a matrix; 0 where they are the same rows
//   of two matrices.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

struct FewTokenTile {
  const bf16* rows[2];  // the first of 8 rows of W, and the first of the other 8
  int64_t column;       // of the output, for the first row
  int32_t begin;        // the first row of the tokens, where they are a part of more
  int32_t count;        // tokens from there on, of which the block takes kTokens; 0 or less: no work
  int32_t part;         // of a layer that has two
};

template <int kTokens, class Layer>
struct FewTokenLinear {
  static_assert(kTokens == 8 || kTokens == 16 || kTokens == 32 || kTokens == 64);
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kRows = 16, kStep = 128, kCopies = kStep / 8;  // copies: of 16 bytes, a row
  static constexpr int kThreadRows = kThreads / kCopies;              // rows that all threads copy at once
  static constexpr int kTiles = kTokens == 64 ? 2 : 1;                // of 8 tokens, a warp

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kRow = (kStep + 8) * 2, kTokensAt = kRows * kRow, kStage = (kRows + kTokens) * kRow;
  static constexpr int kStages = 96 * 1024 / kStage;
  static constexpr int kEarly = kStages - 1 < 4 ? kStages - 1 : 4;  // stages whose weights load before x is there
  static constexpr uint32_t kSharedBytes = kStages * kStage;
  static_assert(2 * (kSharedBytes + 1024) <= 228 * 1024, "two blocks fit on an SM of 9.0");

  const bf16* x;     // [any, depth]
  int64_t x_stride;  // [elements], a multiple of 8
  int32_t depth;     // K, a multiple of kStep
  Layer layer;

  LC_HD void copy_weights(uint32_t stage, const FewTokenTile& tile, int step) const {
    const int row = thread_idx() / kCopies, k = thread_idx() % kCopies * 8, steps = depth / kStep;
    int64_t at = int64_t{row} * depth + k;
    if constexpr (Layer::kPlanes > 1) {
      at += step % steps * kStep + step / steps * layer.plane_stride;
    } else {
      at += step * kStep;
    }
    LC_UNROLL for (int i = 0; i < 2; ++i) cp_async(stage + (row + i * kThreadRows) * kRow + k * 2, tile.rows[i] + at);
  }

  // Zeros for tokens that are not there.
  LC_HD void copy_inputs(uint32_t stage, const FewTokenTile& tile, const int64_t (&starts)[kTokens / kThreadRows],
                         int step) const {
    const int row = thread_idx() / kCopies, k = thread_idx() % kCopies * 8;
    const int first = (Layer::kPlanes > 1 ? step % (depth / kStep) : step) * kStep;
    LC_UNROLL for (int i = 0; i < kTokens / kThreadRows; ++i)
        cp_async(stage + kTokensAt + (row + i * kThreadRows) * kRow + k * 2, x + starts[i] + first + k,
                 row + i * kThreadRows < tile.count);
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    const FewTokenTile tile = layer.tile(depth);
    const int lane = lane_idx(), warp = warp_idx(), steps = Layer::kPlanes * (depth / kStep);
    LC_UNROLL for (int s = 0; s < kEarly; ++s) if (s < steps && tile.count > 0)
        copy_weights(shared + s * kStage, tile, s);
    wait_for_prior_grid();
    if (tile.count <= 0) return;  // not before the wait: this grid may not end before the one that it was launched over

    int64_t starts[kTokens / kThreadRows];  // of this thread's rows of x
    LC_UNROLL for (int i = 0; i < kTokens / kThreadRows; ++i) {
      const int token = thread_idx() / kCopies + i * kThreadRows;
      starts[i] = token < tile.count ? layer.input_row(tile, token) * x_stride : 0;
    }
    LC_UNROLL_BY(1) for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) {
        if (s >= kEarly) copy_weights(shared + s * kStage, tile, s);
        copy_inputs(shared + s * kStage, tile, starts, s);
      }
      cp_async_commit();
    }

    const int first_token = warp * kTiles * 8;
    const uint32_t a_at = (lane % 16) * kRow + lane / 16 * 16;
    // With two tiles, an ldmatrix has the two of one k16; else one tile's of two k16.
    const uint32_t b_at = kTiles == 2 ? kTokensAt + (first_token + lane % 8 + lane / 16 * 8) * kRow + lane / 8 % 2 * 16
                                      : kTokensAt + (first_token + lane % 8) * kRow + lane / 8 * 16;
    float sums[kTiles][4] = {};
    uint32_t stage = shared, free_stage = shared + (kStages - 1) * kStage;
    LC_UNROLL_BY(1) for (int s = 0; s < steps; ++s) {
      cp_async_wait<kStages - 2>();
      sync_threads();  // this stage has arrived, and the one before is free
      if (s + kStages - 1 < steps) {
        copy_weights(free_stage, tile, s + kStages - 1);
        copy_inputs(free_stage, tile, starts, s + kStages - 1);
      }
      cp_async_commit();
      if (first_token < tile.count) {
        uint32_t a[kStep / 16][4], b[kStep / 16][2 * kTiles];
        LC_UNROLL for (int k = 0; k < kStep / 16; ++k) ldmatrix(a[k], stage + a_at + k * 32);
        if constexpr (kTiles == 2) {
          LC_UNROLL for (int k = 0; k < kStep / 16; ++k) ldmatrix(b[k], stage + b_at + k * 32);
        } else {
          LC_UNROLL for (int k = 0; k < kStep / 16; k += 2) {
            uint32_t two[4];
            ldmatrix(two, stage + b_at + k * 32);
            LC_UNROLL for (int i = 0; i < 2; ++i) {
              b[k][i] = two[i];
              b[k + 1][i] = two[2 + i];
            }
          }
        }
        LC_UNROLL for (int k = 0; k < kStep / 16; ++k) LC_UNROLL for (int n = 0; n < kTiles; ++n)
            mma_bf16(sums[n], a[k], b[k][2 * n], b[k][2 * n + 1]);
      }
      free_stage = stage;
      stage = stage + kStage < shared + kSharedBytes ? stage + kStage : shared;
    }

    LC_UNROLL for (int n = 0; n < kTiles; ++n) LC_UNROLL for (int i = 0; i < 2; ++i) {
      const int token = first_token + n * 8 + 2 * (lane % 4) + i;
      if (token < tile.count) layer.store(tile, token, lane / 4, sums[n][i], sums[n][i + 2]);
    }
  }
};

}  // namespace longcat::gpu
