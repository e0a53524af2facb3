// MLA prefill on tensor cores: prompt rows attend to materialised keys and values (mla_prefill_keys.h).
//
// Bound by arithmetic: 640 FLOP for each row, head and position that it sees. A block takes up to 256 rows of one
// chunk and one head, and walks the keys in tiles of 64 positions, from position 0 in ascending order. Long tiles of
// rows come first.
//
// 8 warps; warp w takes 32 rows, so that a fragment of keys or values serves two products. For each tile
//   S = Q K^T   [32, 64] a warp, over 128 + 64 values, in 64 registers. Q stays in shared memory.
//   P           softmax against the running maximum, in registers: 4 lanes share a row. P is rounded to bf16.
//   O += P V    [32, 128], in 128 registers.
// A warp leaves out tiles that none of its rows sees.
//
// A row's tiles begin at multiples of 64 and come in one order. A tile that a row does not see changes none of its
// bits: its weights are zeros and its maximum stays. So the bits of a row depend on its history only. They do not
// depend on the chunk, the rows beside it, or the number of heads.
//
// Per tile a block moves 416 KB through shared memory: 3,250 cycles at 128 bytes. Its 2,560 products take 4,100 cycles
// at 1,280 multiply-adds a cycle, which mma.sync reaches of 2,048. wgmma would replace scores() and add_values() alone.
//
// Shared memory: queries 100 KiB, two stages of keys and values 84 KiB. Rows are 16 bytes longer than they need be. For
// blocks of 99 KiB: 128 rows, tiles of 32 positions, 50 and 42 KiB.
#pragma once

#include "cuda/kernels/mla_prefill_keys.h"

namespace longcat::gpu {

template <int kQueryRows, int kTilePositions>
struct MlaPrefillTiles {
  static constexpr int kNope = 128, kRope = 64, kDim = kNope + kRope, kValue = 128;
  static constexpr int kTile = kTilePositions, kRows = 32, kThreads = kQueryRows / kRows * 32;  // kRows: of a warp
  static_assert((kTile == 64 || kTile == 32) && kBlockSize % kTile == 0 && kKeyTile % kTile == 0);

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kRow = (kDim + 8) * 2, kValueRow = (kValue + 8) * 2;
  static constexpr uint32_t kStagesAt = kQueryRows * kRow;  // [kTile, kDim] keys, [kTile, kValue] values
  static constexpr uint32_t kValuesAt = kTile * kRow, kStage = kValuesAt + kTile * kValueRow;
  static constexpr uint32_t kPlaceAt = kStagesAt + 2 * kStage;  // Place
  static constexpr uint32_t kSharedBytes = kPlaceAt + 16;

  using Scores = float[2][kTile / 8][4];  // of a warp

  PrefillChunks chunks;
  const bf16* q;                    // [num_rows, num_heads, kDim]
  bf16* out;                        // [num_rows, num_heads, kValue]
  int64_t q_strides[2];             // [elements], of a row and a head: multiples of 8
  int64_t out_strides[2];           // [elements]; multiples of 4
  int32_t first_row;                // row of the batch that is row 0 of q and out
  const unsigned char* latents;     // [num_blocks, 64, row_bytes]: rows contiguous
  int64_t block_bytes;              // between cache blocks
  uint32_t row_bytes, rope_in_row;  // [bytes]; multiples of 16
  const int32_t* block_tables;      // [num_sequences, block_table_stride]
  int64_t block_table_stride;       // [elements]
  const bf16* keys;                 // [num_heads, num_positions, kNope]
  const bf16* values;               // [num_heads, num_positions, kValue]
  int64_t num_positions;
  int32_t num_heads, num_tiles;  // num_tiles: of queries, at least
  float scale_log2;              // softmax scale times log2 e

  // Where a block's rows and keys lie. In shared memory, since registers are scarce.
  struct alignas(16) Place {
    int32_t sequence, first_key_tile;  // of the chunk
    int32_t row, head;                 // row of q and out: the block's first
  };
  LC_HD static Place load_place(uint32_t shared) { return load_shared<Place>(shared + kPlaceAt); }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    const int32_t index = static_cast<int32_t>(block_idx()), head = index % num_heads;
    const PrefillChunks::Item item = chunks.find<false, kQueryRows>(num_tiles - 1 - index / num_heads);
    if (item.count == 0) return;
    const int32_t first = item.number * kQueryRows, left = item.count - first;
    const int32_t rows = left < kQueryRows ? left : kQueryRows, start = item.start + first;
    const int32_t tiles = (start + rows - 1) / kTile + 1;
    const Place place{item.sequence, item.first_key_tile, item.row + first - first_row, head};
    if (thread_idx() == 0) store_shared(shared + kPlaceAt, place);
    load_queries(shared, place.row, head, rows);
    sync_threads();  // the place is there
    load_tile(shared, 0);
    cp_async_commit();
    attend(shared, start, rows, tiles);
  }

  LC_HD void load_queries(uint32_t shared, int64_t row, int32_t head, int32_t rows) const {
    const bf16* const from = q + row * q_strides[0] + head * q_strides[1];
    LC_UNROLL_BY(4) for (int copy = thread_idx(); copy < kQueryRows * (kDim / 8); copy += kThreads) {
      const int r = copy / (kDim / 8), k = copy % (kDim / 8) * 8;
      const bool valid = r < rows;
      cp_async(shared + r * kRow + k * 2, from + (valid ? r * q_strides[0] : 0) + k, valid);
    }
  }

  // Copies keys and values of tile `number` of the history to its stage. The rope part is one for all heads. Behind
  // the chunk's end keys and values are zeros, and rope parts anything: no row sees those scores.
  LC_HD void load_tile(uint32_t shared, int32_t number) const {
    const Place place = load_place(shared);
    const uint32_t stage = shared + kStagesAt + number % 2 * kStage;
    const int64_t first =
        place.head * num_positions + int64_t{place.first_key_tile} * kKeyTile + int64_t{number} * kTile;
    const bf16* const key = keys + first * kNope;
    const bf16* const value = values + first * kValue;
    LC_UNROLL_BY(1) for (int copy = thread_idx(); copy < kTile * (kNope / 8); copy += kThreads) {
      const int row = copy / (kNope / 8), k = copy % (kNope / 8) * 8;
      cp_async(stage + row * kRow + k * 2, key + row * kNope + k);
      cp_async(stage + kValuesAt + row * kValueRow + k * 2, value + row * kValue + k);
    }
    constexpr int kOfBlock = static_cast<int>(kBlockSize) / kTile;  // tiles
    const int64_t block = load_global(block_tables + place.sequence * block_table_stride + number / kOfBlock);
    const unsigned char* const rope =
        latents + block * block_bytes + number % kOfBlock * kTile * row_bytes + rope_in_row;
    LC_UNROLL_BY(1) for (int copy = thread_idx(); copy < kTile * (kRope / 8); copy += kThreads) {
      const int row = copy / (kRope / 8), k = copy % (kRope / 8) * 8;
      cp_async(stage + row * kRow + (kNope + k) * 2, rope + row * row_bytes + k * 2);
    }
  }

  LC_HD void attend(uint32_t shared, int32_t start, int32_t rows, int32_t tiles) const {
    const int warp_row = warp_idx() * kRows;
    const int32_t last_row = warp_row + kRows < rows ? warp_row + kRows - 1 : rows - 1;
    const int32_t warp_tiles = warp_row < rows ? (start + last_row) / kTile + 1 : 0;
    float sums[2][16][4] = {}, maxima[2][2], weights[2][2] = {};
    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int h = 0; h < 2; ++h) maxima[m][h] = minus_infinity();
    LC_UNROLL_BY(1) for (int32_t tile = 0; tile < tiles; ++tile) {
      cp_async_wait<0>();
      sync_threads();  // this tile is there, and the other stage is free
      if (tile + 1 < tiles) load_tile(shared, tile + 1);
      cp_async_commit();
      if (tile >= warp_tiles) continue;
      const uint32_t stage = shared + kStagesAt + tile % 2 * kStage;
      Scores s = {};
      scores(s, shared + warp_row * kRow, stage);
      const int32_t seen = start + warp_row - tile * kTile + 1;  // positions of the tile that the warp's first row sees
      if (seen < kTile) mask(s, seen);
      softmax(s, sums, maxima, weights);
      add_values(sums, s, stage + kValuesAt);
    }
    const Place place = load_place(shared);
    bf16* const to = out + place.row * out_strides[0] + place.head * out_strides[1];
    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int h = 0; h < 2; ++h) {
      float weight = weights[m][h];
      LC_UNROLL for (int lanes = 1; lanes < 4; lanes *= 2) weight = add_rn(weight, shuffle_xor(weight, lanes));
      const float inverse = 1.0f / weight;
      const int32_t row = warp_row + m * 16 + h * 8 + lane_idx() / 4;
      LC_UNROLL for (int n = 0; n < 16; n += 2) {
        uint32_t pairs[2];
        LC_UNROLL for (int i = 0; i < 2; ++i) pairs[i] =
            pack_bf16(mul_rn(sums[m][n + i][2 * h], inverse), mul_rn(sums[m][n + i][2 * h + 1], inverse));
        store_pairs(to + row * out_strides[0], n * 8, pairs[0], pairs[1], row < rows);
      }
    }
  }

  // s = Q K^T for the 32 rows at `queries` and the 64 keys at `stage`.
  LC_HD static void scores(Scores& s, uint32_t queries, uint32_t stage) {
    const int lane = lane_idx();
    LC_UNROLL_BY(2) for (int k = 0; k < kDim; k += 16) {
      uint32_t a[2][4];
      LC_UNROLL for (int m = 0; m < 2; ++m)
          ldmatrix(a[m], queries + (m * 16 + lane % 16) * kRow + (k + lane / 16 * 8) * 2);
      LC_UNROLL for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        ldmatrix(b, stage + (n * 16 + lane % 8 + lane / 16 * 8) * kRow + (k + lane / 8 % 2 * 8) * 2);
        LC_UNROLL for (int m = 0; m < 2; ++m) {
          mma_bf16(s[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  // Row i of the warp sees the first `seen` + i positions of the tile.
  LC_HD static void mask(Scores& s, int32_t seen) {
    const int row = lane_idx() / 4, column = 2 * (lane_idx() % 4);
    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int n = 0; n < kTile / 8; ++n)
        LC_UNROLL for (int i = 0; i < 4; ++i) s[m][n][i] =
            n * 8 + column + i % 2 < seen + m * 16 + i / 2 * 8 + row ? s[m][n][i] : minus_infinity();
  }

  // Weights in place of scores. maxima: of the scores, times log2 e and the scale. weights: of this lane's columns.
  LC_HD void softmax(Scores& s, float (&sums)[2][16][4], float (&maxima)[2][2], float (&weights)[2][2]) const {
    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int h = 0; h < 2; ++h) {
      float most = minus_infinity();
      LC_UNROLL for (int n = 0; n < kTile / 8; ++n) LC_UNROLL for (int i = 2 * h; i < 2 * h + 2; ++i) most =
          s[m][n][i] > most ? s[m][n][i] : most;
      LC_UNROLL for (int lanes = 1; lanes < 4; lanes *= 2) {
        const float other = shuffle_xor(most, lanes);
        most = other > most ? other : most;
      }
      most = mul_rn(most, scale_log2);
      const float before = maxima[m][h];
      most = before > most ? before : most;
      const float keep = exp2_approx(before - most);
      maxima[m][h] = most;
      float sum = 0;
      LC_UNROLL for (int n = 0; n < kTile / 8; ++n) LC_UNROLL for (int i = 2 * h; i < 2 * h + 2; ++i) {
        s[m][n][i] = exp2_approx(fma_rn(s[m][n][i], scale_log2, -most));
        sum = add_rn(sum, s[m][n][i]);
      }
      weights[m][h] = fma_rn(weights[m][h], keep, sum);
      LC_UNROLL for (int n = 0; n < 16; ++n) LC_UNROLL for (int i = 2 * h; i < 2 * h + 2; ++i) sums[m][n][i] =
          mul_rn(sums[m][n][i], keep);
    }
  }

  // sums += P V for the values at `values`.
  LC_HD static void add_values(float (&sums)[2][16][4], const Scores& p, uint32_t values) {
    const int lane = lane_idx();
    LC_UNROLL for (int k = 0; k < kTile / 16; ++k) {
      uint32_t a[2][4];
      LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int i = 0; i < 4; ++i) a[m][i] =
          pack_bf16(p[m][2 * k + i / 2][i % 2 * 2], p[m][2 * k + i / 2][i % 2 * 2 + 1]);
      LC_UNROLL for (int n = 0; n < 8; ++n) {
        uint32_t b[4];
        ldmatrix_trans(b, values + (k * 16 + lane % 16) * kValueRow + (n * 16 + lane / 16 * 8) * 2);
        LC_UNROLL for (int m = 0; m < 2; ++m) {
          mma_bf16(sums[m][2 * n], a[m], b[0], b[1]);
          mma_bf16(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
};

using MlaPrefill = MlaPrefillTiles<256, 64>;
using MlaPrefillSmall = MlaPrefillTiles<128, 32>;

}  // namespace longcat::gpu
