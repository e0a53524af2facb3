// Keys and values of MLA prefill on tensor cores: latents of the paged cache times k_up and v_up, for some heads.
//
// Bound by arithmetic: 8.4 MFLOP a position (512 x 256 for each of 32 heads), for 1,152 bytes read and 16 KiB written.
// A block takes kTileRows positions of one chunk and some of the heads. It gathers the latents once: they stay in
// shared memory, as bf16. Then it walks the heads, first the values [128, 128], then the keys without their rope part.
// The weights come in steps of 64 latent values through a ring of 4 stages.
//
// 8 warps: of 128 positions, warp w takes 32 and 64 columns, 64 registers of sums. A result is one chain: latent values
// ascending, one accumulator. It is rounded to bf16. So a key depends on its latent only, not on the chunk or the tile.
//
// fp8 latents: code times scale is rounded to bf16, 2^-9 of a value that the code knows to 2^-4.
//
// Rows behind the chunk's end are zeros. A value that is not finite becomes zero, and the whole key of that head and
// position NaN. So all rows that see the position get NaN. Rows before it share a tile with it: their weight is zero,
// and zero times NaN would reach them.
//
// Shared memory: latents 130 KiB, stages 72 KiB. Rows are 16 bytes longer than they need be: no bank conflicts. With 64
// positions, for blocks of 99 KiB: 65 and 30 KiB, and the same bits.
#pragma once

#include "cuda/kernels/e4m3_pairs.h"
#include "cuda/kernels/mla_prefill_work.h"
#include "cuda/kernels/store_pairs.h"
#include "ops/batch.h"

namespace longcat::gpu {

template <DType kLatents, int kTileRows = kKeyTile>
struct MlaPrefillKeys {
  static_assert(kLatents == DType::bf16 || kLatents == DType::f8_e4m3);
  static_assert(kTileRows == kKeyTile || kTileRows == kKeyTile / 2);
  static constexpr bool kFp8 = kLatents == DType::f8_e4m3, kLarge = kTileRows == kKeyTile;
  static constexpr int kLora = 512, kWidth = 128, kThreads = 256, kStages = kLarge ? 4 : 3, kStep = kLarge ? 64 : 32;
  static constexpr int kRowWarps = kTileRows / 32, kColumns = kWidth * kRowWarps / 8;  // kColumns: of a warp
  static constexpr int kSteps = kLora / kStep;                                         // of one product
  static constexpr int kGroups = kLora / Fp8Latent::kGroup;
  static constexpr int kBlock = static_cast<int>(kBlockSize);

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kRow = (kLora + 8) * 2;  // [kTileRows, kLora] bf16
  static constexpr uint32_t kKeyRow = (kWidth + 8) * 2, kValueRow = (kStep + 8) * 2;
  static constexpr uint32_t kStagesAt = kTileRows * kRow;  // [kStep, kWidth] of k_up, or [kWidth, kStep] of v_up
  static constexpr uint32_t kStage = kWidth * kValueRow;
  static constexpr uint32_t kBrokenAt = kStagesAt + kStages * kStage;  // [kTileRows] u32: the last such head, from 1
  static constexpr uint32_t kSharedBytes = kBrokenAt + kTileRows * 4;
  static_assert(kStep * kKeyRow <= kStage);

  PrefillChunks chunks;
  const unsigned char* latents;  // [num_blocks, 64, row_bytes]: rows contiguous
  int64_t block_bytes;           // between cache blocks
  const int32_t* block_tables;   // [num_sequences, block_table_stride]
  int64_t block_table_stride;    // [elements]
  const bf16* k_up;              // [num_heads, kLora, kWidth]
  const bf16* v_up;              // [num_heads, kWidth, kLora]
  bf16* keys;                    // [num_heads, num_positions, kWidth]
  bf16* values;                  // the same
  int64_t num_positions;         // of all chunks of the launch, with those behind their ends
  int32_t num_heads, heads_of_block;

  static constexpr uint32_t kRowBytes =
      kFp8 ? static_cast<uint32_t>(Fp8Latent{kLora, 64}.row_bytes()) : (kLora + 64) * 2;

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    const int32_t groups = (num_heads + heads_of_block - 1) / heads_of_block;
    const int32_t index = static_cast<int32_t>(block_idx());
    const PrefillChunks::Item item = chunks.find<true, kTileRows>(index / groups);
    if (item.count == 0) return;
    const int32_t first_head = index % groups * heads_of_block;
    const int32_t left = num_heads - first_head, heads = left < heads_of_block ? left : heads_of_block;
    if (thread_idx() < kTileRows) store_shared(shared + kBrokenAt + thread_idx() * 4, 0u);
    gather(shared, item);
    const int32_t num_steps = heads * 2 * kSteps;
    for (int step = 0; step < kStages - 1; ++step) load_step(shared, first_head, step, num_steps);
    int32_t step = 0;
    const int64_t first_row = int64_t{item.first_key_tile} * kKeyTile + item.number * kTileRows;
    for (int32_t head = 0; head < heads; ++head) {
      const int64_t to = ((first_head + head) * num_positions + first_row) * kWidth;
      multiply<false>(shared, first_head, step, num_steps, values + to, head + 1);
      multiply<true>(shared, first_head, step, num_steps, keys + to, head + 1);
    }
  }

  // Latents of the tile as bf16, zeros behind the chunk's end.
  LC_HD void gather(uint32_t shared, const PrefillChunks::Item& item) const {
    constexpr int kCopies = kLora / 8;  // of 8 values
    const int32_t* const table = block_tables + item.sequence * block_table_stride;
    LC_UNROLL_BY(4) for (int copy = thread_idx(); copy < kTileRows * kCopies; copy += kThreads) {
      const int row = copy / kCopies, k = copy % kCopies * 8;
      const int32_t position = item.number * kTileRows + row;
      const bool valid = position < item.end();
      const int64_t block = valid ? load_global(table + position / kBlock) : 0;
      const unsigned char* const from = latents + block * block_bytes + position % kBlock * kRowBytes;
      const uint32_t to = shared + row * kRow + k * 2;
      if constexpr (!kFp8) {
        cp_async(to, from + k * 2, valid);
      } else {
        Word2 codes{};
        float scale = 0;
        if (valid) {
          codes = load_global(reinterpret_cast<const Word2*>(from + k));
          scale = load_global(reinterpret_cast<const float*>(from + kLora) + k / Fp8Latent::kGroup);
        }
        Word4 words{};
        LC_UNROLL for (int i = 0; i < 2; ++i) {
          const Word2 pairs = bf16_of_e4m3(codes.v[i]);
          LC_UNROLL for (int j = 0; j < 2; ++j) words.v[2 * i + j] =
              pack_bf16(mul_rn(low_bf16(pairs.v[j]), scale), mul_rn(high_bf16(pairs.v[j]), scale));
          if (nan_codes(codes.v[i])) words.v[2 * i] = 0x7fff7fffu;  // all results of a row with a NaN are NaN
        }
        store_shared(to, words);
      }
    }
  }

  // Copies the weights of a step of the block, and closes their group.
  LC_HD void load_step(uint32_t shared, int32_t first_head, int32_t step, int32_t num_steps) const {
    if (step < num_steps) {
      const int64_t head = first_head + step / (2 * kSteps);
      const int k = step % kSteps * kStep;
      const bool is_key = step % (2 * kSteps) >= kSteps;
      const uint32_t stage = shared + kStagesAt + step % kStages * kStage;
      LC_UNROLL_BY(4) for (int copy = thread_idx(); copy < kStep * kWidth / 8; copy += kThreads) {
        if (is_key) {
          const int row = copy / (kWidth / 8), column = copy % (kWidth / 8) * 8;
          cp_async(stage + row * kKeyRow + column * 2, k_up + (head * kLora + k + row) * kWidth + column);
        } else {
          // Of rows of 4 copies, 8 lanes copy the same part of 8 rows, or they would meet a bank twice.
          constexpr int kCopies = kStep / 8;
          const int row = kCopies == 8 ? copy / 8 : copy / 32 * 8 + copy % 8;
          const int column = (kCopies == 8 ? copy % 8 : copy / 8 % 4) * 8;
          cp_async(stage + row * kValueRow + column * 2, v_up + (head * kWidth + row) * kLora + k + column);
        }
      }
    }
    cp_async_commit();
  }

  // Keys or values of a head: [kTileRows, kWidth] from `to` on. head: of the block, from 1.
  template <bool kKeys>
  LC_HD void multiply(uint32_t shared, int32_t first_head, int32_t& step, int32_t num_steps, bf16* to,
                      uint32_t head) const {
    const int lane = lane_idx(), row = warp_idx() % kRowWarps * 32, column = warp_idx() / kRowWarps * kColumns;
    float sums[2][kColumns / 8][4] = {};
    LC_UNROLL_BY(1) for (int part = 0; part < kSteps; ++part, ++step) {
      cp_async_wait<kStages - 2>();
      sync_threads();  // this step is there, and the stage of the one before is free
      load_step(shared, first_head, step + kStages - 1, num_steps);
      const uint32_t stage = shared + kStagesAt + step % kStages * kStage;
      LC_UNROLL for (int k = 0; k < kStep; k += 16) {
        uint32_t a[2][4];
        LC_UNROLL for (int m = 0; m < 2; ++m)
            ldmatrix(a[m], shared + (row + m * 16 + lane % 16) * kRow + (part * kStep + k + lane / 16 * 8) * 2);
        LC_UNROLL for (int n = 0; n < kColumns / 16; ++n) {
          const int first = column + n * 16;
          uint32_t b[4];
          if constexpr (kKeys) {
            ldmatrix_trans(b, stage + (k + lane % 16) * kKeyRow + (first + lane / 16 * 8) * 2);
          } else {
            ldmatrix(b, stage + (first + lane % 8 + lane / 16 * 8) * kValueRow + (k + lane / 8 % 2 * 8) * 2);
          }
          LC_UNROLL for (int m = 0; m < 2; ++m) {
            mma_bf16(sums[m][2 * n], a[m], b[0], b[1]);
            mma_bf16(sums[m][2 * n + 1], a[m], b[2], b[3]);
          }
        }
      }
    }
    LC_UNROLL for (int m = 0; m < 2; ++m) LC_UNROLL for (int h = 0; h < 2; ++h) {
      const int at = row + m * 16 + h * 8 + lane / 4;
      const bool is_broken = kKeys && load_shared<uint32_t>(shared + kBrokenAt + at * 4) == head;
      bool breaks = false;
      LC_UNROLL for (int n = 0; n < kColumns / 8; n += 2) {
        uint32_t pairs[2];
        LC_UNROLL for (int i = 0; i < 2; ++i) {
          pairs[i] = pack_bf16(sums[m][n + i][2 * h], sums[m][n + i][2 * h + 1]);
          if constexpr (kKeys) {
            if (is_broken) pairs[i] = 0x7fff7fffu;
          } else {
            breaks |= clear_broken(pairs[i]);
          }
        }
        store_pairs(to + at * kWidth, column + n * 8, pairs[0], pairs[1], true);
      }
      if (breaks) atomic_max_shared(shared + kBrokenAt + at * 4, head);
    }
  }

  // Zeros in place of values that are not finite. Returns whether there were any.
  LC_HD static bool clear_broken(uint32_t& pair) {
    const bool low = (pair & 0x7f80u) == 0x7f80u, high = (pair & 0x7f800000u) == 0x7f800000u;
    if (low) pair &= 0xffff0000u;
    if (high) pair &= 0x0000ffffu;
    return low || high;
  }
};

}  // namespace longcat::gpu
