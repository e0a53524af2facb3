// Linear layers of few tokens whose weights are e4m3 codes with a scale for 128 x 128 values, and whose inputs stay
// bf16: y[T, N] = x[T, K] W[N, K]^T. Fp8Wide has the same bits for many tokens.
//
// The codes are the bound: a byte a weight. One block has two groups of 8 rows of W, for m16n8k16, and up to 32 tokens.
// In a round its four warps multiply four units of 128 columns (fp8_units.h). Each warp has a ring of copies of its
// own, so a code is converted to bf16 once. The products meet in shared memory, where a warp for each 8 tokens adds
// them in order. A result's bits depend neither on T nor on kTokens.
//
// Layers are those of FewTokenLinear (few_token_layers.h, few_token_experts.h) with one plane. They point to bf16; a
// row of codes is as long as one of depth / 2 bf16 values.
#pragma once

#include "cuda/kernels/few_token_layers.h"
#include "cuda/kernels/fp8_units.h"

namespace longcat::gpu {

using namespace simt;

template <int kTokens, class Layer>
struct Fp8Linear {
  static_assert(kTokens == 8 || kTokens == 16 || kTokens == 32);
  static_assert(Layer::kPlanes == 1);
  static constexpr int kThreads = 128, kWarps = kThreads / 32, kTiles = kTokens / 8;
  static constexpr int kMostUnits = kThreads;  // a thread loads the scales of one

  // Layout of the shared memory [bytes]: rings of stages, a unit's codes and inputs each; the products of two rounds,
  // [4 warps][tiles][32 lanes] 16 bytes; two scales of each unit.
  static constexpr uint32_t kStage = kFp8Codes + kTiles * kFp8Inputs;
  static constexpr int kStages = kTokens == 8 ? 4 : kTokens == 16 ? 3 : 2;
  static constexpr uint32_t kRing = kStages * kStage, kProductsAt = kWarps * kRing;
  static constexpr uint32_t kRound = kWarps * kTiles * kFp8Piece, kScalesAt = kProductsAt + 2 * kRound;
  static constexpr uint32_t kSharedBytes = kScalesAt + kMostUnits * 8;
  static_assert(kSharedBytes <= 99 * 1024, "what a block has at most on 8.6, 8.9 and 12.0");

  const bf16* x;        // [any, depth]
  int64_t x_stride;     // [elements], a multiple of 8
  int32_t depth;        // K, a multiple of 128, at most kMostUnits of them
  Fp8Scales scales[2];  // of each part of the layer
  Layer layer;

  // The scale of the first 8 rows (group 0) or the others.
  LC_HD float scale_of(const FewTokenTile& tile, int group, int unit) const {
    const int64_t row = tile.column + group * Layer::kRowsApart;
    return scales[tile.part].of(reinterpret_cast<const unsigned char*>(tile.rows[group]) - row * depth, row, unit);
  }

  LC_HD void copy_weights(uint32_t stage, const FewTokenTile& tile, int unit) const {
    copy_fp8_codes(
        stage,
        {reinterpret_cast<const unsigned char*>(tile.rows[0]), reinterpret_cast<const unsigned char*>(tile.rows[1])},
        depth, unit);
  }

  // Zeros for tokens that are not there.
  LC_HD void copy_inputs(uint32_t stage, const FewTokenTile& tile, const int64_t (&starts)[kTiles], int unit) const {
    LC_UNROLL for (int n = 0; n < kTiles; ++n)
        copy_fp8_inputs(stage + kFp8Codes + n * kFp8Inputs, x + starts[n], n * 8 + lane_idx() / 4 < tile.count, unit);
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    const FewTokenTile tile = layer.tile(depth / 2);
    const int lane = lane_idx(), warp = warp_idx(), units = depth / kFp8Columns;
    const uint32_t ring = shared + warp * kRing;
    const bool has_scales = thread_idx() < units && tile.count > 0;
    LC_UNROLL for (int s = 0; s < kStages - 1; ++s) if (warp + s * kWarps < units && tile.count > 0)
        copy_weights(ring + s * kStage, tile, warp + s * kWarps);
    Float2 of_unit{};
    if (has_scales) of_unit = {scale_of(tile, 0, thread_idx()), scale_of(tile, 1, thread_idx())};
    wait_for_prior_grid();
    if (tile.count <= 0) return;  // not before the wait, as in FewTokenLinear

    int64_t starts[kTiles];  // of the rows of x that this lane copies
    LC_UNROLL for (int n = 0; n < kTiles; ++n) {
      const int token = n * 8 + lane / 4;
      starts[n] = token < tile.count ? layer.input_row(tile, token) * x_stride : 0;
    }
    LC_UNROLL for (int s = 0; s < kStages - 1; ++s) {
      if (warp + s * kWarps < units) copy_inputs(ring + s * kStage, tile, starts, warp + s * kWarps);
      cp_async_commit();
    }
    if (has_scales) store_shared(shared + kScalesAt + thread_idx() * 8, of_unit);

    float sums[4] = {};  // of tile `warp`, where there is one
    uint32_t stage = ring, free_stage = ring + (kStages - 1) * kStage, products_at = shared + kProductsAt;
    LC_UNROLL_BY(1) for (int first = 0; first < units; first += kWarps) {
      const int unit = first + warp;
      cp_async_wait<kStages - 2>();
      sync_warp();  // this stage has arrived, and the one before is free
      if (const int next = unit + (kStages - 1) * kWarps; next < units) {
        copy_weights(free_stage, tile, next);
        copy_inputs(free_stage, tile, starts, next);
      }
      cp_async_commit();
      if (unit < units) {
        float products[kTiles][4] = {};
        multiply_fp8(products, stage, stage + kFp8Codes);
        LC_UNROLL for (int n = 0; n < kTiles; ++n)
            store_shared(products_at + (warp * kTiles + n) * kFp8Piece + lane * 16,
                         Float4{products[n][0], products[n][1], products[n][2], products[n][3]});
      }
      sync_threads();  // the round's products are there, and those of the round before have been read
      if (warp < kTiles) {
        LC_UNROLL for (int w = 0; w < kWarps; ++w) if (first + w < units) {
          const Float4 product = load_shared<Float4>(products_at + (w * kTiles + warp) * kFp8Piece + lane * 16);
          const Float2 scale = load_shared<Float2>(shared + kScalesAt + (first + w) * 8);
          LC_UNROLL for (int i = 0; i < 4; ++i) sums[i] = fma_rn(scale.v[i / 2], product.v[i], sums[i]);
        }
      }
      free_stage = stage;
      stage = stage + kStage < ring + kRing ? stage + kStage : ring;
      products_at = products_at == shared + kProductsAt ? products_at + kRound : shared + kProductsAt;
    }

    if (warp >= kTiles) return;
    LC_UNROLL for (int i = 0; i < 2; ++i) {
      const int token = warp * 8 + 2 * (lane % 4) + i;
      if (token < tile.count) layer.store(tile, token, lane / 4, sums[i], sums[i + 2]);
    }
  }
};

}  // namespace longcat::gpu
