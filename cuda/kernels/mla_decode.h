// Absorbed MLA decode on tensor cores: one block attends with all 32 heads of one token to one piece of its history.
//
// Bound by the latent rows, 1,152 bytes a position, read once for all heads: 60 FLOP a byte. 8 warps; a tile is 64
// positions, one cache block. For each tile
//   S = Q K^T   [32, 64] over 576 values: warp w takes slice w % 4 of 144 values and half w / 4 of the positions. Its
//               part of Q stays in 72 registers. The four slices are added in one order, through shared memory.
//   P           softmax against the running maximum: 8 lanes a head, 8 positions a lane. P is rounded to bf16.
//   O += P V    [32, 512]: warp w takes 64 columns, in 64 registers.
// Shared memory: two stages of a tile, 146 KiB, so that one loads while the other is used; Q lies in the second at the
// beginning. Scores of four slices 34, weights 4.5 KiB. Rows are 16 bytes longer than they need be: no bank conflicts.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

// One block's work. begin is a multiple of 64.
struct MlaPiece {
  int32_t token, begin, end;  // positions [begin, end)
};

struct MlaDecode {
  static constexpr int kHeads = 32, kLora = 512, kRope = 64, kDim = kLora + kRope;
  static constexpr int kThreads = 256, kTile = 64, kStages = 2;
  static constexpr int kSlices = 4, kSliceDim = kDim / kSlices, kSliceSteps = kSliceDim / 16;  // of Q K^T
  static constexpr int kCopies = kDim / 8;                                                     // of 16 bytes, a row

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kRow = (kDim + 8) * 2, kStage = kTile * kRow;
  static constexpr uint32_t kScoreRow = (kTile + 8) * 4, kWeightRow = (kTile + 8) * 2;
  static constexpr uint32_t kScoresAt = kStages * kStage;                           // [kSlices, kHeads, kTile] f32
  static constexpr uint32_t kWeightsAt = kScoresAt + kSlices * kHeads * kScoreRow;  // [kHeads, kTile] bf16
  static constexpr uint32_t kKeepAt = kWeightsAt + kHeads * kWeightRow;             // [kHeads] f32
  static constexpr uint32_t kSharedBytes = kKeepAt + kHeads * 4;

  const bf16* q_latent;         // [num_tokens, kHeads, kLora]
  const bf16* q_rope;           // [num_tokens, kHeads, kRope]
  const bf16* latents;          // [num_blocks, 64, kDim]
  const int32_t* block_tables;  // [num_tokens, block_table_stride]: the cache block of each 64 positions
  const MlaPiece* pieces;       // [blocks of the grid]
  float* sums;                  // [blocks of the grid, kHeads, kLora]: sum of weight * value
  float* maxima;                // [blocks of the grid, kHeads]: of the scores, times log2 e
  float* weights;               // [blocks of the grid, kHeads]: sum of the weights
  int64_t block_table_stride;   // [elements]
  float scale_log2;             // softmax scale times log2 e

  // Copies the query, [kHeads, kDim], to the second stage.
  LC_HD void load_query(uint32_t shared, int64_t token) const {
    LC_UNROLL_BY(3) for (int i = 0; i < kHeads * kCopies / kThreads; ++i) {
      const int copy = thread_idx() + i * kThreads, head = copy / kCopies, k = copy % kCopies * 8;
      const bf16* from = k < kLora ? q_latent + (token * kHeads + head) * kLora + k
                                   : q_rope + (token * kHeads + head) * kRope + k - kLora;
      cp_async(shared + kStage + head * kRow + k * 2, from);
    }
    cp_async_commit();
  }

  // Copies the positions [begin, begin + kTile) to a stage; zeros behind the piece's end.
  LC_HD void load_tile(uint32_t stage, const int32_t* block_table, int begin, int end) const {
    const int64_t block = load_global(block_table + begin / kTile);
    const bf16* rows = latents + block * kTile * kDim;
    LC_UNROLL_BY(3) for (int i = 0; i < kTile * kCopies / kThreads; ++i) {
      const int copy = thread_idx() + i * kThreads, row = copy / kCopies, k = copy % kCopies * 8;
      cp_async(stage + row * kRow + k * 2, rows + row * kDim + k, begin + row < end);
    }
    cp_async_commit();
  }

  LC_HD void operator()(uint32_t shared) const {
    const int lane = lane_idx(), warp = warp_idx(), slice = warp % kSlices, half = warp / kSlices;
    const int group = lane / 4, pair = 2 * (lane % 4);  // of an accumulator: its rows are group and group + 8
    const MlaPiece piece = load_global(pieces + block_idx());
    const int32_t* block_table = block_tables + piece.token * block_table_stride;

    load_query(shared, piece.token);
    load_tile(shared, block_table, piece.begin, piece.end);
    cp_async_wait<1>();
    sync_threads();
    uint32_t q[2][kSliceSteps][4];
    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int k = 0; k < kSliceSteps; ++k) ldmatrix(
        q[m][k], shared + kStage + (m * 16 + lane % 16) * kRow + (slice * kSliceDim + k * 16 + lane / 16 * 8) * 2);
    sync_threads();  // the second stage is free

    float out[2][8][4] = {};
    // In the softmax 8 lanes share a head; each has the positions [first, first + 4) and 32 further on. The heads of a
    // warp are 4 apart, so that its stores of P meet no bank twice.
    const int head = warp % 4 + warp / 4 * 16 + lane / 8 * 4, first = lane % 8 * 4;
    float row_max = minus_infinity(), row_sum = 0;
    int parity = 0;
    for (int begin = piece.begin; begin < piece.end; begin += kTile, parity ^= 1) {
      const uint32_t stage = shared + parity * kStage;
      if (begin + kTile < piece.end) {
        load_tile(shared + (parity ^ 1) * kStage, block_table, begin + kTile, piece.end);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      sync_threads();

      float s[2][4][4] = {};
      LC_UNROLL for (int k = 0; k < kSliceSteps; ++k) LC_UNROLL for (int n = 0; n < 2; ++n) {
        uint32_t b[4];
        ldmatrix(b, stage + (half * 32 + n * 16 + lane % 8 + lane / 16 * 8) * kRow +
                        (slice * kSliceDim + k * 16 + lane / 8 % 2 * 8) * 2);
        LC_UNROLL for (int m = 0; m < 2; ++m) {
          mma_bf16(s[m][2 * n], q[m][k], b[0], b[1]);
          mma_bf16(s[m][2 * n + 1], q[m][k], b[2], b[3]);
        }
      }
      LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int n = 0; n < 4; ++n) LC_UNROLL for (int h = 0; h < 2; ++h)
          store_shared(shared + kScoresAt + (slice * kHeads + m * 16 + group + h * 8) * kScoreRow +
                           (half * 32 + n * 8 + pair) * 4,
                       Float2{s[m][n][2 * h], s[m][n][2 * h + 1]});
      sync_threads();

      const int left = piece.end - begin;
      float v[8], tile_max = row_max;
      LC_UNROLL for (int j = 0; j < 8; j += 4) {
        const uint32_t at = shared + kScoresAt + head * kScoreRow + (first + j * 8) * 4;
        Float4 sum = load_shared<Float4>(at);
        LC_UNROLL for (int sl = 1; sl < kSlices; ++sl) {
          const Float4 x = load_shared<Float4>(at + sl * kHeads * kScoreRow);
          LC_UNROLL for (int i = 0; i < 4; ++i) sum.v[i] = add_rn(sum.v[i], x.v[i]);
        }
        LC_UNROLL for (int i = 0; i < 4; ++i) {
          v[j + i] = first + j * 8 + i < left ? mul_rn(sum.v[i], scale_log2) : minus_infinity();
          tile_max = v[j + i] > tile_max ? v[j + i] : tile_max;
        }
      }
      LC_UNROLL for (int mask = 1; mask < 8; mask *= 2) {
        const float other = shuffle_xor(tile_max, mask);
        tile_max = other > tile_max ? other : tile_max;
      }
      const float keep = exp2_approx(row_max - tile_max);
      float tile_sum = 0;
      LC_UNROLL for (int j = 0; j < 8; ++j) {
        v[j] = exp2_approx(v[j] - tile_max);
        tile_sum = add_rn(tile_sum, v[j]);
      }
      LC_UNROLL for (int mask = 1; mask < 8; mask *= 2) tile_sum = add_rn(tile_sum, shuffle_xor(tile_sum, mask));
      row_sum = fma_rn(row_sum, keep, tile_sum);
      row_max = tile_max;
      LC_UNROLL for (int j = 0; j < 8; j += 4)
          store_shared(shared + kWeightsAt + head * kWeightRow + (first + j * 8) * 2,
                       Word2{pack_bf16(v[j], v[j + 1]), pack_bf16(v[j + 2], v[j + 3])});
      if (lane % 8 == 0) store_shared(shared + kKeepAt + head * 4, keep);
      sync_threads();

      LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int h = 0; h < 2; ++h) {
        const float factor = load_shared<float>(shared + kKeepAt + (m * 16 + group + h * 8) * 4);
        LC_UNROLL for (int n = 0; n < 8; ++n) LC_UNROLL for (int i = 0; i < 2; ++i) out[m][n][2 * h + i] =
            mul_rn(out[m][n][2 * h + i], factor);
      }
      LC_UNROLL for (int k = 0; k < kTile / 16; ++k) {
        uint32_t p[2][4];
        LC_UNROLL for (int m = 0; m < 2; ++m)
            ldmatrix(p[m], shared + kWeightsAt + (m * 16 + lane % 16) * kWeightRow + (k * 16 + lane / 16 * 8) * 2);
        LC_UNROLL for (int n = 0; n < 4; ++n) {
          uint32_t b[4];
          ldmatrix_trans(b, stage + (k * 16 + lane % 16) * kRow + (warp * 64 + n * 16 + lane / 16 * 8) * 2);
          LC_UNROLL for (int m = 0; m < 2; ++m) {
            mma_bf16(out[m][2 * n], p[m], b[0], b[1]);
            mma_bf16(out[m][2 * n + 1], p[m], b[2], b[3]);
          }
        }
      }
      sync_threads();  // stage, scores and weights are free
    }

    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int n = 0; n < 8; ++n) LC_UNROLL for (int h = 0; h < 2; ++h)
        store_global(reinterpret_cast<Float2*>(sums + (block_idx() * kHeads + m * 16 + group + h * 8) * kLora +
                                               warp * 64 + n * 8 + pair),
                     Float2{out[m][n][2 * h], out[m][n][2 * h + 1]});
    if (lane % 8 == 0) {
      store_global(maxima + block_idx() * kHeads + head, row_max);
      store_global(weights + block_idx() * kHeads + head, row_sum);
    }
  }
};

}  // namespace longcat::gpu
