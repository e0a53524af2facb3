// Index scores of sparse attention on tensor cores: how well each position suits a token, by 16 index heads.
//
//   scores[t, j] = sum_h weights[t, h] * max(q[t, h] . key_j, 0)
//
// Bound by the keys, 256 bytes a position, where a sequence has one token: 16 FLOP a byte. With 8 tokens, tensor cores
// are the bound. A block takes 8 rows of the batch and a piece of the positions. The rows of one sequence share its
// keys; rows of several sequences come one sequence after the other.
//
// 8 warps; a tile is 64 positions, one cache block. The 16 heads of a token are the 16 rows of a product, so a warp has
// the token's query in 32 registers, and takes 8 positions in 8 products. With 1, 2, 4 or 8 rows a warp has 8, 16, 32
// or 64 positions of the tile. The heads' sum is ((h, h + 8), then 3 shuffles): in one order, whatever the rows.
//
// Shared memory: the queries of 8 rows, and three stages of a tile. Rows are 16 bytes longer than they need be: no bank
// conflicts.
#pragma once

#include "cuda/kernels/simt.h"
#include "ops/batch.h"

namespace longcat::gpu {

using namespace simt;

struct IndexScores {
  static constexpr int kHeads = 16, kDim = 128, kRows = 8;
  static constexpr int kThreads = 256, kWarps = kThreads / 32, kTile = 64, kStages = 3;
  static constexpr int kCopies = kDim / 8;  // of 16 bytes, a key or a head's query

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kRow = (kDim + 8) * 2, kStage = kTile * kRow;
  static constexpr uint32_t kKeysAt = kRows * kHeads * kRow;  // behind the queries [kRows, kHeads, kDim] bf16
  static constexpr uint32_t kSharedBytes = kKeysAt + kStages * kStage;

  const bf16* q;                // [num_tokens, kHeads, kDim]
  int64_t q_strides[2];         // [elements], of a token and a head: multiples of 8
  const float* head_weights;    // [num_tokens, kHeads]
  int64_t weights_stride;       // [elements]
  const bf16* keys;             // [num_blocks, 64, kDim]: rows contiguous
  int64_t block_stride;         // [elements]
  const int32_t* positions;     // [num_tokens]
  const int32_t* sequence_idx;  // [num_tokens]
  const int32_t* block_tables;  // [num_sequences, max_blocks]
  int64_t block_table_stride;   // [elements]
  float* scores;                // [last_row - first_row, context]
  int64_t context;
  int32_t first_row, last_row;              // of this launch
  int32_t num_pieces, piece;                // pieces of the positions, and their size: a multiple of kTile
  int32_t topk, init_tokens, local_tokens;  // SelectionRule
  float scale;

  // Rows of one sequence, and the positions of this block that the last of them may choose.
  struct Run {
    int32_t row, count, begin, end;
    const int32_t* block_table;
  };

  LC_HD void load_queries(uint32_t shared, const Run& run) const {
    LC_UNROLL_BY(2) for (int copy = thread_idx(); copy < run.count * kHeads * kCopies; copy += kThreads) {
      const int place = copy / kCopies, k = copy % kCopies * 8;
      cp_async(shared + place * kRow + k * 2,
               q + (run.row + place / kHeads) * q_strides[0] + place % kHeads * q_strides[1] + k);
    }
  }
  // Zeros behind the end of the run, where nothing may be stored yet.
  LC_HD void load_tile(uint32_t stage, const Run& run, int32_t begin) const {
    if (begin < run.end) {
      const bf16* const rows = keys + load_global(run.block_table + begin / kTile) * block_stride;
      LC_UNROLL for (int copy = thread_idx(); copy < kTile * kCopies; copy += kThreads) {
        const int row = copy / kCopies, k = copy % kCopies * 8;
        cp_async(stage + row * kRow + k * 2, rows + row * kDim + k, begin + row < run.end);
      }
    }
    cp_async_commit();
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    const int32_t block = static_cast<int32_t>(block_idx()), from = block % num_pieces * piece;
    const int32_t first = first_row + block / num_pieces * kRows;
    const int32_t last = first + kRows < last_row ? first + kRows : last_row;
    for (int32_t row = first; row < last;) {
      const int32_t sequence = load_global(sequence_idx + row);
      int32_t stop = row + 1;
      while (stop < last && load_global(sequence_idx + stop) == sequence) ++stop;
      const int32_t position = load_global(positions + stop - 1), chosen_end = position + 1 - local_tokens;
      Run run{row, stop - row, from, from + piece, block_tables + sequence * block_table_stride};
      if (run.begin < init_tokens) run.begin = init_tokens / kTile * kTile;
      if (run.end > chosen_end) run.end = chosen_end;
      if (position >= topk && run.begin < run.end) score(shared, run);
      row = stop;
    }
  }

  LC_HD void score(uint32_t shared, const Run& run) const {
    const int lane = lane_idx(), warp = warp_idx(), group = lane / 4, pair = 2 * (lane % 4);
    int rows = 1;  // that share the warps
    while (rows < run.count) rows *= 2;
    const int own = warp % rows, first_tile = warp / rows * rows;  // this warp's row and first 8 positions
    const bool computes = own < run.count;
    sync_threads();  // the queries and stages of the run before are free
    load_queries(shared, run);
    LC_UNROLL for (int stage = 0; stage < kStages - 1; ++stage)
        load_tile(shared + kKeysAt + stage * kStage, run, run.begin + stage * kTile);

    uint32_t query[kDim / 16][4] = {};
    float weights[2] = {};
    uint32_t stage = 0;
    for (int32_t begin = run.begin; begin < run.end; begin += kTile, stage = (stage + 1) % kStages) {
      cp_async_wait<kStages - 2>();
      sync_threads();  // this tile is there, and the stage before it is free
      load_tile(shared + kKeysAt + (stage + kStages - 1) % kStages * kStage, run, begin + (kStages - 1) * kTile);
      if (!computes) continue;
      if (begin == run.begin) {
        LC_UNROLL for (int k = 0; k < kDim / 16; ++k)
            ldmatrix(query[k], shared + (own * kHeads + lane % 16) * kRow + (k * 16 + lane / 16 * 8) * 2);
        LC_UNROLL for (int i = 0; i < 2; ++i) weights[i] =
            mul_rn(load_global(head_weights + (run.row + own) * weights_stride + group + i * 8), scale);
      }
      const uint32_t tile = shared + kKeysAt + stage * kStage;
      float* const to = scores + (run.row + own - first_row) * context + begin + pair;
      LC_UNROLL_BY(1) for (int n = first_tile; n < first_tile + rows; ++n) {
        float products[4] = {};
        LC_UNROLL for (int k = 0; k < kDim / 32; ++k) {
          uint32_t b[4];
          ldmatrix(b, tile + (n * 8 + lane % 8) * kRow + (k * 32 + lane / 8 * 8) * 2);
          mma_bf16(products, query[2 * k], b[0], b[1]);
          mma_bf16(products, query[2 * k + 1], b[2], b[3]);
        }
        Float2 sums;
        LC_UNROLL for (int i = 0; i < 2; ++i) {
          // A sum that begins with +0 is never -0: equal scores have equal bits.
          float sum = fma_rn(weights[0], products[i] > 0 ? products[i] : 0.0f, 0.0f);
          sum = fma_rn(weights[1], products[2 + i] > 0 ? products[2 + i] : 0.0f, sum);
          LC_UNROLL for (int mask = 4; mask < 32; mask *= 2) sum = add_rn(sum, shuffle_xor(sum, mask));
          sums.v[i] = sum;
        }
        if (group == 0) store_global(reinterpret_cast<Float2*>(to + n * 8), sums);
      }
    }
  }
};

}  // namespace longcat::gpu
