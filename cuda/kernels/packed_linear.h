// Linear layers whose weights are integers of 4 or 8 bits with a scale for 32 columns: y[T, N] = x[T, K] W[N, K]^T.
//
// W stays packed (packed_layout.h). For few tokens its bytes are the bound: 0.56 or 1.06 bytes a weight. One block has
// two groups of 8 rows of W, for m16n8k16, and up to 32 tokens. Its four warps share K: warp w has the units w, w + 4,
// w + 8, ... of 128 columns, by a ring of copies of its own, so a weight is unpacked once and no barrier stands in the
// loop. Every access to memory has 16 bytes a lane, but for the scales.
//
// Arithmetic. The integers are exact in bf16. Two products of 16 columns begin at zero for each block of 32. Then
// sum = fma(scale, product, sum) in f32, so W is never rounded: it has its logical value. A result is the sum of the
// warps' sums in ascending order. Its bits depend neither on T nor on kTokens.
//
// A product may take any 16 of a block's columns. Lane t of four gives 8 t to 8 t + 3 to the first product, and 8 t + 4
// to 8 t + 7 to the second, in both operands. So a lane's inputs of a block are 16 bytes too, as they lie in x.
//
// Layers are those of FewTokenLinear (few_token_layers.h, few_token_experts.h) with one plane. They point to bf16; 8
// rows of W are as long here as 8 rows of `pitch` bf16 values.
#pragma once

#include "cuda/kernels/few_token_layers.h"
#include "cuda/kernels/packed_layout.h"

namespace longcat::gpu {

using namespace simt;

template <int kTokens, int kBits, class Layer>
struct PackedLinear {
  static_assert(kTokens == 8 || kTokens == 16 || kTokens == 32);
  static_assert(kBits == 4 || kBits == 8);
  static_assert(Layer::kPlanes == 1);
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kTiles = kTokens / 8, kColumns = kUnitColumns, kBlocks = kColumns / kQuantBlock;

  // Layout of a warp's stage [bytes]: two units, then for each tile [4 blocks][32 lanes] 16 bytes of x.
  static constexpr uint32_t kPiece = 32 * 16, kValues = unit_value_bytes(kBits), kUnit = unit_bytes(kBits);
  static constexpr uint32_t kInputsAt = 2 * kUnit, kStage = kInputsAt + kTiles * kBlocks * kPiece;
  static constexpr uint32_t kFitting = 48 * 1024 / (kWarps * kStage);
  static constexpr int kStages = kFitting < 2 ? 2 : kFitting;
  static constexpr uint32_t kRing = kStages * kStage, kSharedBytes = kWarps * kRing;
  static_assert(kSharedBytes <= 99 * 1024, "what a block has at most on 8.6, 8.9 and 12.0");

  const bf16* x;     // [any, depth]
  int64_t x_stride;  // [elements], a multiple of 8
  int32_t depth;     // K, a multiple of kColumns
  int32_t pitch;     // depth / kColumns * kUnit / 16
  bool half_scales;  // IEEE half; else bf16
  Layer layer;

  LC_HD void copy_weights(uint32_t stage, const FewTokenTile& tile, int unit) const {
    const int lane = lane_idx();
    LC_UNROLL for (int i = 0; i < 2; ++i) {
      const auto* const from = reinterpret_cast<const unsigned char*>(tile.rows[i]) + int64_t{unit} * kUnit;
      const uint32_t to = stage + i * kUnit;
      LC_UNROLL for (uint32_t at = 0; at < kValues; at += kPiece) cp_async(to + at + lane * 16, from + at + lane * 16);
      if (lane < 4) cp_async(to + kValues + lane * 16, from + kValues + lane * 16);
    }
  }

  // Zeros for tokens that are not there.
  LC_HD void copy_inputs(uint32_t stage, const FewTokenTile& tile, const int64_t (&starts)[kTiles], int unit) const {
    const int lane = lane_idx(), column = unit * kColumns + lane % 4 * 8;
    LC_UNROLL for (int n = 0; n < kTiles; ++n) LC_UNROLL for (int b = 0; b < kBlocks; ++b)
        cp_async(stage + kInputsAt + (n * kBlocks + b) * kPiece + lane * 16, x + starts[n] + column + b * kQuantBlock,
                 n * 8 + lane / 4 < tile.count);
  }

  // Columns 8 t + 2 i and the next of block b, as bf16: 128 + value less 128 + offset, without rounding.
  LC_HD static uint32_t pair_of(const uint32_t* words, int b, int i) {
    if constexpr (kBits == 4) {
      return sub_bf16x2((words[b] >> 4 * i & 0x000f000fu) | 0x43004300u, 0x43084308u);
    } else {
      const uint32_t word = words[2 * b + i / 2] >> 8 * (i % 2);  // the sign is worth -128
      return sub_bf16x2((word & 0x007f007fu) | 0x43004300u, (word & 0x00800080u) | 0x43004300u);
    }
  }

  LC_HD float scale_of(const Word2& scales, int b) const {
    const uint32_t pair = scales.v[b / 2];
    if (half_scales) return half_value(static_cast<uint16_t>(pair >> 16 * (b % 2)));
    return b % 2 == 0 ? low_bf16(pair) : high_bf16(pair);
  }

  // Adds the products of a stage.
  LC_HD void multiply(float (&sums)[kTiles][4], uint32_t stage) const {
    const int lane = lane_idx();
    uint32_t words[2][kBits];
    Word2 scales[2];
    LC_UNROLL for (int i = 0; i < 2; ++i) {
      LC_UNROLL for (int p = 0; p < kBits / 4; ++p) {
        const Word4 piece = load_shared<Word4>(stage + i * kUnit + p * kPiece + lane * 16);
        LC_UNROLL for (int j = 0; j < 4; ++j) words[i][4 * p + j] = piece.v[j];
      }
      scales[i] = load_shared<Word2>(stage + i * kUnit + kValues + lane / 4 * 8);
    }
    LC_UNROLL for (int b = 0; b < kBlocks; ++b) {
      uint32_t a[2][4];
      LC_UNROLL for (int i = 0; i < 4; ++i) LC_UNROLL for (int group = 0; group < 2; ++group)
          a[i / 2][i % 2 * 2 + group] = pair_of(words[group], b, i);
      const float low = scale_of(scales[0], b), high = scale_of(scales[1], b);
      LC_UNROLL for (int n = 0; n < kTiles; ++n) {
        const Word4 inputs = load_shared<Word4>(stage + kInputsAt + (n * kBlocks + b) * kPiece + lane * 16);
        float product[4] = {};
        mma_bf16(product, a[0], inputs.v[0], inputs.v[1]);
        mma_bf16(product, a[1], inputs.v[2], inputs.v[3]);
        LC_UNROLL for (int i = 0; i < 4; ++i) sums[n][i] = fma_rn(i < 2 ? low : high, product[i], sums[n][i]);
      }
    }
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    const FewTokenTile tile = layer.tile(pitch);
    const int lane = lane_idx(), warp = warp_idx(), units = depth / kColumns;
    const uint32_t ring = shared + warp * kRing;
    LC_UNROLL for (int s = 0; s < kStages - 1; ++s) if (warp + s * kWarps < units && tile.count > 0)
        copy_weights(ring + s * kStage, tile, warp + s * kWarps);
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

    float sums[kTiles][4] = {};
    uint32_t stage = ring, free_stage = ring + (kStages - 1) * kStage;
    LC_UNROLL_BY(1) for (int unit = warp; unit < units; unit += kWarps) {
      cp_async_wait<kStages - 2>();
      sync_warp();  // this stage has arrived, and the one before is free
      if (const int next = unit + (kStages - 1) * kWarps; next < units) {
        copy_weights(free_stage, tile, next);
        copy_inputs(free_stage, tile, starts, next);
      }
      cp_async_commit();
      multiply(sums, stage);
      free_stage = stage;
      stage = stage + kStage < ring + kRing ? stage + kStage : ring;
    }

    // Where only this lane has read: the inputs of the first stage.
    LC_UNROLL for (int n = 0; n < kTiles; ++n)
        store_shared(ring + kInputsAt + n * kPiece + lane * 16, Float4{sums[n][0], sums[n][1], sums[n][2], sums[n][3]});
    sync_threads();
    if (warp >= kTiles) return;
    Float4 total = load_shared<Float4>(shared + kInputsAt + warp * kPiece + lane * 16);
    LC_UNROLL for (int w = 1; w < kWarps; ++w) {
      const Float4 more = load_shared<Float4>(shared + w * kRing + kInputsAt + warp * kPiece + lane * 16);
      LC_UNROLL for (int i = 0; i < 4; ++i) total.v[i] = add_rn(total.v[i], more.v[i]);
    }
    LC_UNROLL for (int i = 0; i < 2; ++i) {
      const int token = warp * 8 + 2 * (lane % 4) + i;
      if (token < tile.count) layer.store(tile, token, lane / 4, total.v[i], total.v[i + 2]);
    }
  }
};

}  // namespace longcat::gpu
