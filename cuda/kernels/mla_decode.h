// Absorbed MLA decode on tensor cores: 16 or 32 heads of the generated tokens attend to their latents in one launch.
//
// Bound by the latent rows, 1,152 bytes a position in bf16 and 656 in fp8, read once for all heads: 60 and 106 FLOP a
// byte. The grid has a block for each multiprocessor, whatever the batch and the context. A block takes items of the
// step's list (mla_work.h) by stride. An item is a piece of the history for one token, or for up to 5 neighbours. They
// come one after the other and find the piece in shared memory.
//
// 8 warps; a tile is 64 positions, one cache block. For each tile
//   S = Q K^T   [heads, 64] over 576 values: warp w takes half w / 4 of the positions and slice w % 4 of the values,
//               which is 128 latent values and 16 of the rope part. Its part of Q stays in 72 registers. The four
//               slices are added in one order, through shared memory.
//   P           softmax against the running maximum: 8 lanes a head, 8 positions a lane. P is rounded to bf16.
//   O += P V    [heads, 512]: warp w takes 64 columns, in 64 registers.
//
// fp8 latents: a code is exact in bf16, and the tensor cores multiply codes. Slice w of Q K^T is group w of the scales:
// the sum over its 128 codes times the scale of the position, in f32, before the rope part is added. In P V the scale
// goes to the weight: P times scale is rounded to bf16, once for each group. So no latent is rounded again.
//
// A token's pieces are by absolute position. The last block to arrive for 16 pieces adds them in ascending order.
// Where a token has more, the last block to arrive for the token adds those sums in ascending order. So the bits of a
// token depend on its history only. Rows behind a token's end are zeros in shared memory. That holds in a group too:
// its last token goes first, and each clears its own row.
//
// Where a block has 99 KiB of shared memory (8.6, 8.9, 12.x), a tile is 32 positions of 16 heads: bf16 latents alone. A
// piece then does not fit in both stages, so there are no groups.
//
// Shared memory: two stages of a tile, so that one loads while the other is used. The first tile of the next item loads
// during the last tile of this one, and the next query during its P V. Rows are 16 bytes longer than they need be: no
// bank conflicts.
#pragma once

#include "cuda/kernels/e4m3_pairs.h"
#include "cuda/kernels/mla_rows.h"
#include "ops/batch.h"

namespace longcat::gpu {

// kSelects: tokens may attend to lists of positions (MlaTokens::topk). A tile is then kTilePositions rows of the list.
template <DType kLatents, int kHeads, bool kSelects = false, int kTilePositions = 64>
struct MlaDecode {
  static_assert(kLatents == DType::bf16 || kLatents == DType::f8_e4m3);
  static_assert(kHeads == 16 || kHeads == 32);
  static_assert(kTilePositions == 64 || (kTilePositions == 32 && kLatents == DType::bf16 && kHeads == 16));
  static constexpr bool kFp8 = kLatents == DType::f8_e4m3;
  static constexpr int kLora = 512, kRope = 64, kDim = kLora + kRope;
  static constexpr int kThreads = 256, kTile = kTilePositions, kStages = 2;
  static constexpr int kRowTiles = kHeads / 16;
  static constexpr int kSlices = 4, kSliceSteps = kDim / kSlices / 16, kSliceLora = kLora / kSlices;  // of Q K^T
  static constexpr int kGroups = kFp8 ? kLora / Fp8Latent::kGroup : 1;                                // scales of P
  static constexpr int kQueryCopies = kDim / 8;                                                       // of 16 bytes
  static constexpr int kSegment = 16;               // pieces that are added first
  static constexpr int kShare = kThreads / kHeads;  // threads that add up one head
  static constexpr int kHalf = kTile / 2;           // positions of a warp in Q K^T
  static_assert(!kFp8 || kSliceLora == Fp8Latent::kGroup);

  // A latent row in memory [bytes].
  static constexpr uint32_t kScalesInRow = kLora, kRopeInRow = kLora + 4 * kGroups;  // of fp8
  static constexpr uint32_t kRowBytes = kFp8 ? kRopeInRow + 2 * kRope : 2 * kDim;
  static constexpr int kRowCopies = kRowBytes / 16;
  static_assert(!kFp8 || (Fp8Latent{kLora, kRope}.row_bytes() == kRowBytes &&
                          Fp8Latent{kLora, kRope}.scales_offset() == kScalesInRow &&
                          Fp8Latent{kLora, kRope}.rope_offset() == kRopeInRow));

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kRow = (kDim + 8) * 2, kStageRow = kFp8 ? kRowBytes : kRow, kStage = kTile * kStageRow;
  static constexpr uint32_t kScoreRow = (kTile + 8) * 4, kWeightRow = (kTile + 8) * 2, kScaleRow = (kTile + 8) * 4;
  static constexpr uint32_t kTileAt = kStages * kStage;                      // fp8: [kTile, kDim] bf16
  static constexpr uint32_t kQueryAt = kTileAt + (kFp8 ? kTile * kRow : 0);  // [kHeads, kDim] bf16
  static constexpr uint32_t kScoresAt = kQueryAt;                            // the same: [kSlices, kHeads, kTile] f32
  static constexpr uint32_t kWeightsAt = kQueryAt + kHeads * kRow;           // [kGroups, kHeads, kTile] bf16
  static constexpr uint32_t kScalesAt = kWeightsAt + kGroups * kHeads * kWeightRow;  // fp8: [kGroups, kTile] f32
  static constexpr uint32_t kKeepAt = kScalesAt + (kFp8 ? kGroups * kScaleRow : 0);  // [kHeads] f32
  static constexpr uint32_t kWorkAt = kKeepAt + kHeads * 4;                          // [2] Work
  static constexpr uint32_t kArrivedAt = kWorkAt + 2 * 32;                           // u32
  static constexpr uint32_t kSharedBytes = kArrivedAt + 16;
  static_assert(kSlices * kHeads * kScoreRow <= kHeads * kRow);

  MlaTokens tokens;
  int32_t first_token, last_token;            // of this launch
  const bf16* q_latent;                       // [num_tokens, heads, kLora]
  const bf16* q_rope;                         // [num_tokens, heads, kRope]
  bf16* out;                                  // [num_tokens, heads, kLora]
  int64_t q_latent_strides[2];                // [elements], of a token and a head: multiples of 8
  int64_t q_rope_strides[2], out_strides[2];  // [elements]; those of out: multiples of 4
  const unsigned char* latents;               // [num_blocks, 64, kRowBytes]: rows contiguous
  int64_t block_bytes;                        // between cache blocks
  const int32_t* block_tables;                // [num_sequences, block_table_stride]
  int64_t block_table_stride;                 // [elements]
  int32_t head_blocks;                        // heads / kHeads
  int32_t num_pieces;                         // of the longest history there may be
  float* sums;                                // [launch's tokens, head_blocks, num_pieces, kHeads, kLora]
  float* maxima;                              // [.., kHeads]: of the scores, times log2 e
  float* weights;                             // [.., kHeads]: sums of the weights
  uint32_t* arrivals;                         // [tokens, head_blocks, num_segments + 1]: 0 between launches
  float scale_log2;                           // softmax scale times log2 e
  MlaLists lists = {};                        // where kSelects

  LC_HD int32_t num_segments() const { return (num_pieces + kSegment - 1) / kSegment; }

  // One head block of an item of the list; or no work: count 0. It lies in shared memory, since registers are scarce.
  struct alignas(16) Work {
    MlaItem item;
    int32_t head_block;
    LC_HD int32_t end(int token) const {  // of the positions that token `token` of the item sees
      const int32_t length = item.position + token + 1;
      return length < item.end ? length : item.end;
    }
  };
  static_assert(sizeof(Work) == 32);
  LC_HD static Work load_work(uint32_t at) {
    const Word4 words[] = {load_shared<Word4>(at), load_shared<Word4>(at + 16)};
    Work work;
    memcpy(&work, words, sizeof(work));
    return work;
  }
  // Stores the next work from number `index` on. Collective.
  LC_HD void find_work(uint32_t at, int32_t& index) const {
    const int32_t before = tokens.first_item(first_token);
    const int32_t count = (tokens.first_item(last_token) - before) * head_blocks;
    Work work{};
    for (; index < count && work.item.count == 0; index += static_cast<int32_t>(num_blocks()))
      work = {tokens.item_at(before + index / head_blocks, first_token, last_token), index % head_blocks};
    if (lane_idx() > 0) return;
    Word4 words[2];
    memcpy(words, &work, sizeof(work));
    store_shared(at, words[0]);
    store_shared(at + 16, words[1]);
  }

  // Copies the query of a token of the item, [kHeads, kDim].
  LC_HD void load_query(uint32_t shared, const Work& work, int token) const {
    const int64_t row = work.item.token + token, first_head = work.head_block * kHeads;
    const bf16* const latent = q_latent + row * q_latent_strides[0] + first_head * q_latent_strides[1];
    const bf16* const rope = q_rope + row * q_rope_strides[0] + first_head * q_rope_strides[1];
    LC_UNROLL_BY(3) for (int copy = thread_idx(); copy < kHeads * kQueryCopies; copy += kThreads) {
      const int head = copy / kQueryCopies, k = copy % kQueryCopies * 8;
      cp_async(shared + kQueryAt + head * kRow + k * 2,
               k < kLora ? latent + head * q_latent_strides[1] + k : rope + head * q_rope_strides[1] + k - kLora);
    }
  }

  // Copies the positions [begin, begin + kTile) to a stage; zeros behind the end of the item's last token.
  LC_HD void load_tile(uint32_t stage, const Work& work, int32_t begin) const {
    const int32_t end = work.end(work.item.count - 1);
    if constexpr (kSelects) {
      const int32_t* const table = block_tables + int64_t{work.item.sequence} * block_table_stride;
      return copy_rows<kRowBytes, kStageRow, kThreads, kTile>(stage, latents, block_bytes, table,
                                                              lists.of(tokens, work.item.token), begin, end);
    }
    constexpr int kBlock = static_cast<int>(kBlockSize);
    const int64_t block = load_global(block_tables + work.item.sequence * block_table_stride + begin / kBlock);
    const unsigned char* const rows =
        latents + block * block_bytes + (kTile < kBlock ? begin % kBlock * kRowBytes : 0u);
    LC_UNROLL_BY(3) for (int copy = thread_idx(); copy < kTile * kRowCopies; copy += kThreads) {
      const int row = copy / kRowCopies, at = copy % kRowCopies * 16;
      cp_async(stage + row * kStageRow + at, rows + row * kRowBytes + at, begin + row < end);
    }
  }

  // Zeros in place of the rows [begin, end) of the item, which starts in stage `first`.
  LC_HD void clear_rows(uint32_t shared, int first, const Work& work, int32_t begin, int32_t end) const {
    if (thread_idx() >= kRowCopies) return;
    for (int32_t position = begin; position < end; ++position)
      store_shared(shared + (first ^ ((position - work.item.begin) / kTile & 1)) * kStage +
                       position % kTile * kStageRow + thread_idx() * 16,
                   Word4{});
  }

  // Codes of a stage as bf16, and scales apart.
  LC_HD void convert(uint32_t shared, uint32_t stage) const {
    LC_UNROLL_BY(2) for (int i = 0; i < kTile * kLora / 8 / kThreads; ++i) {
      const int at = thread_idx() + i * kThreads, row = at / (kLora / 8), k = at % (kLora / 8) * 8;
      const Word2 codes = load_shared<Word2>(stage + row * kStageRow + k);
      const Word2 low = bf16_of_e4m3(codes.v[0]), high = bf16_of_e4m3(codes.v[1]);
      Word4 values{low.v[0], low.v[1], high.v[0], high.v[1]};
      // All scores of a position with a NaN are NaN, and so are all sums: no matter which value it is.
      if (nan_codes(codes.v[0]) | nan_codes(codes.v[1])) values.v[0] = 0x7fff7fffu;
      store_shared(shared + kTileAt + row * kRow + k * 2, values);
    }
    LC_UNROLL for (int i = 0; i < kTile * kRope / 8 / kThreads; ++i) {
      const int at = thread_idx() + i * kThreads, row = at / (kRope / 8), k = at % (kRope / 8) * 8;
      store_shared(shared + kTileAt + row * kRow + (kLora + k) * 2,
                   load_shared<Word4>(stage + row * kStageRow + kRopeInRow + k * 2));
    }
    const int row = thread_idx() / kGroups, scale = thread_idx() % kGroups;
    store_shared(shared + kScalesAt + scale * kScaleRow + row * 4,
                 load_shared<float>(stage + row * kStageRow + kScalesInRow + scale * 4));
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    int32_t index = static_cast<int32_t>(block_idx());
    uint32_t work_at = shared + kWorkAt, following_at = work_at + sizeof(Work);
    if (warp_idx() == 0) find_work(work_at, index);
    sync_threads();
    const Work first_work = load_work(work_at);
    if (first_work.item.count == 0) return;
    load_tile(shared, first_work, first_work.item.begin);
    load_query(shared, first_work, first_work.item.count - 1);
    cp_async_commit();
    int first_stage = 0;
    while (true) {
      const int count = load_work(work_at).item.count;
      if (count == 0) break;
      if (warp_idx() == 0) find_work(following_at, index);
      int stage = first_stage;  // of the last tile
      for (int token = count - 1; token >= 0; --token) {
        if (token + 1 < count) {
          const Work work = load_work(work_at);
          clear_rows(shared, first_stage, work, work.end(token), work.end(token + 1));
        }
        stage = attend(shared, work_at, token, following_at, first_stage);
      }
      first_stage = stage ^ 1;
      const uint32_t done = work_at;
      work_at = following_at;
      following_at = done;
    }
  }

  // Attends from one token to the item's piece, and adds up what is complete. Returns the stage of the last tile.
  LC_HD int attend(uint32_t shared, uint32_t work_at, int token, uint32_t following_at, int stage) const {
    const int lane = lane_idx(), warp = warp_idx(), slice = warp % kSlices, half = warp / kSlices;
    const int group = lane / 4, pair = 2 * (lane % 4);  // of an accumulator: its rows are group and group + 8
    int32_t begin, end;
    bool loads;
    {
      const Work work = load_work(work_at);
      begin = work.item.begin;
      end = work.end(token);
      loads = token + 1 == work.item.count;
    }
    const int32_t first_begin = begin;

    cp_async_wait<0>();
    sync_threads();  // the query and the first tile are there
    uint32_t q[kRowTiles][kSliceSteps][4];
    LC_UNROLL for (int m = 0; m < kRowTiles; ++m) LC_UNROLL for (int k = 0; k < kSliceSteps; ++k)
        ldmatrix(q[m][k], shared + kQueryAt + (m * 16 + lane % 16) * kRow + (column(slice, k) + lane / 16 * 8) * 2);
    sync_threads();  // the scores may lie where the query was

    float out_sums[kRowTiles][8][4] = {};
    // In the softmax 8 lanes share a head; each has the positions [first, first + 4), and of 64 those 32 further on.
    // The heads of a warp are 4 apart, so that its stores of P meet no bank twice.
    const int head = warp % 4 + warp / 4 * 16 + lane / 8 * 4, first = lane % 8 * 4;
    float row_max = minus_infinity(), row_sum = 0;
    for (;; begin += kTile, stage ^= 1) {
      const bool is_last = begin + kTile >= end;
      if (begin > first_begin) {
        cp_async_wait<0>();
        sync_threads();  // this tile is there, and the other stage is free
      }
      const uint32_t other = shared + (stage ^ 1) * kStage;
      const bool ends_item = is_last && token == 0;
      if (ends_item || (!is_last && loads)) {
        const Work work = load_work(ends_item ? following_at : work_at);
        if (work.item.count > 0) load_tile(other, work, ends_item ? work.item.begin : begin + kTile);
      }
      uint32_t tile = shared + stage * kStage;
      if constexpr (kFp8) {
        convert(shared, tile);
        tile = shared + kTileAt;
        sync_threads();
      }

      float s[kRowTiles][kHalf / 8][4] = {};
      LC_UNROLL for (int k = 0; k < kSliceSteps; ++k) {
        if constexpr (kFp8) {
          if (k * 16 == kSliceLora) scale_scores(shared, s, slice, half * kHalf + pair);
        }
        LC_UNROLL for (int n = 0; n < kHalf / 16; ++n) {
          uint32_t b[4];
          ldmatrix(b, tile + (half * kHalf + n * 16 + lane % 8 + lane / 16 * 8) * kRow +
                          (column(slice, k) + lane / 8 % 2 * 8) * 2);
          LC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
            mma_bf16(s[m][2 * n], q[m][k], b[0], b[1]);
            mma_bf16(s[m][2 * n + 1], q[m][k], b[2], b[3]);
          }
        }
      }
      LC_UNROLL for (int m = 0; m < kRowTiles; ++m) LC_UNROLL for (int n = 0; n < kHalf / 8; ++n)
          LC_UNROLL for (int h = 0; h < 2; ++h)
              store_shared(shared + kScoresAt + (slice * kHeads + m * 16 + group + h * 8) * kScoreRow +
                               (half * kHalf + n * 8 + pair) * 4,
                           Float2{s[m][n][2 * h], s[m][n][2 * h + 1]});
      sync_threads();

      if (warp < kHeads / 4) softmax(shared, head, first, end - begin, row_max, row_sum);
      sync_threads();  // the weights are there, and the scores are free
      if (is_last) {
        const Work work = load_work(token > 0 ? work_at : following_at);
        if (work.item.count > 0) load_query(shared, work, token > 0 ? token - 1 : work.item.count - 1);
      }
      cp_async_commit();

      LC_UNROLL for (int m = 0; m < kRowTiles; ++m) LC_UNROLL for (int h = 0; h < 2; ++h) {
        const float factor = load_shared<float>(shared + kKeepAt + (m * 16 + group + h * 8) * 4);
        LC_UNROLL for (int n = 0; n < 8; ++n) LC_UNROLL for (int i = 0; i < 2; ++i) out_sums[m][n][2 * h + i] =
            mul_rn(out_sums[m][n][2 * h + i], factor);
      }
      const uint32_t p_at = shared + kWeightsAt + (kFp8 ? warp / 2 * kHeads * kWeightRow : 0);
      LC_UNROLL for (int k = 0; k < kTile / 16; ++k) {
        uint32_t p[kRowTiles][4];
        LC_UNROLL for (int m = 0; m < kRowTiles; ++m)
            ldmatrix(p[m], p_at + (m * 16 + lane % 16) * kWeightRow + (k * 16 + lane / 16 * 8) * 2);
        LC_UNROLL for (int n = 0; n < 4; ++n) {
          uint32_t b[4];
          ldmatrix_trans(b, tile + (k * 16 + lane % 16) * kRow + (warp * 64 + n * 16 + lane / 16 * 8) * 2);
          LC_UNROLL for (int m = 0; m < kRowTiles; ++m) {
            mma_bf16(out_sums[m][2 * n], p[m], b[0], b[1]);
            mma_bf16(out_sums[m][2 * n + 1], p[m], b[2], b[3]);
          }
        }
      }
      if (is_last) break;
    }

    const Work work = load_work(work_at);
    const int64_t place = int64_t{work.item.token + token - first_token} * head_blocks + work.head_block;
    const int64_t slot = place * num_pieces + work.item.piece;
    LC_UNROLL for (int m = 0; m < kRowTiles; ++m) LC_UNROLL for (int n = 0; n < 8; ++n)
        LC_UNROLL for (int h = 0; h < 2; ++h)
            store_global(reinterpret_cast<Float2*>(sums + (slot * kHeads + m * 16 + group + h * 8) * kLora + warp * 64 +
                                                   n * 8 + pair),
                         Float2{out_sums[m][n][2 * h], out_sums[m][n][2 * h + 1]});
    if (warp < kHeads / 4 && lane % 8 == 0) {
      store_global(maxima + slot * kHeads + head, row_max);
      store_global(weights + slot * kHeads + head, row_sum);
    }
    combine(shared, work, token, place);
    return stage;
  }

  // First column of step k of a slice: 8 steps of latent values, then one of the rope part.
  LC_HD static constexpr int column(int slice, int k) {
    return k < kSliceLora / 16 ? slice * kSliceLora + k * 16 : kLora + slice * 16;
  }

  // Multiplies the scores of the columns from `first` on by the scales of their positions.
  LC_HD void scale_scores(uint32_t shared, float (&s)[kRowTiles][kHalf / 8][4], int slice, int first) const {
    LC_UNROLL for (int n = 0; n < kHalf / 8; ++n) {
      const Float2 scale = load_shared<Float2>(shared + kScalesAt + slice * kScaleRow + (first + n * 8) * 4);
      LC_UNROLL for (int m = 0; m < kRowTiles; ++m) LC_UNROLL for (int i = 0; i < 4; ++i) s[m][n][i] =
          mul_rn(s[m][n][i], scale.v[i % 2]);
    }
  }

  // The weights of a tile's positions for one head. `left` of them are seen.
  LC_HD void softmax(uint32_t shared, int head, int first, int32_t left, float& row_max, float& row_sum) const {
    constexpr int kValues = kTile / 8;
    float v[kValues], tile_max = row_max;
    LC_UNROLL for (int j = 0; j < kValues; j += 4) {
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
    LC_UNROLL for (int j = 0; j < kValues; ++j) {
      v[j] = exp2_approx(v[j] - tile_max);
      tile_sum = add_rn(tile_sum, v[j]);
    }
    LC_UNROLL for (int mask = 1; mask < 8; mask *= 2) tile_sum = add_rn(tile_sum, shuffle_xor(tile_sum, mask));
    row_sum = fma_rn(row_sum, keep, tile_sum);
    row_max = tile_max;
    LC_UNROLL for (int g = 0; g < kGroups; ++g) LC_UNROLL for (int j = 0; j < kValues; j += 4) {
      Float4 p{v[j], v[j + 1], v[j + 2], v[j + 3]};
      if constexpr (kFp8) {
        const Float4 scale = load_shared<Float4>(shared + kScalesAt + g * kScaleRow + (first + j * 8) * 4);
        LC_UNROLL for (int i = 0; i < 4; ++i) p.v[i] = mul_rn(p.v[i], scale.v[i]);
      }
      store_shared(shared + kWeightsAt + (g * kHeads + head) * kWeightRow + (first + j * 8) * 2,
                   Word2{pack_bf16(p.v[0], p.v[1]), pack_bf16(p.v[2], p.v[3])});
    }
    if (lane_idx() % 8 == 0) store_shared(shared + kKeepAt + head * 4, keep);
  }

  // Adds the pieces of the token's segment, where this block is the last to arrive there; and then its segments.
  // place: the token and the head block.
  LC_HD void combine(uint32_t shared, const Work& work, int token, int64_t place) const {
    const int32_t pieces = kv_piece_index(work.item.position + token) + 1;
    const int32_t segments = (pieces + kSegment - 1) / kSegment, segment = work.item.piece / kSegment;
    const int32_t left = pieces - segment * kSegment;
    uint32_t* const counters = arrivals + place * (num_segments() + 1);
    bf16* const to = out + (work.item.token + token) * out_strides[0] + work.head_block * kHeads * out_strides[1];
    const int64_t slot = place * num_pieces;
    if (!is_last_of(shared, counters + segment, left < kSegment ? left : kSegment)) return;
    add(slot + segment * kSegment, 1, left < kSegment ? left : kSegment, segments == 1 ? to : nullptr);
    if (segments == 1 || !is_last_of(shared, counters + num_segments(), segments)) return;
    add(slot, kSegment, segments, to);
  }

  // Whether this block is the last of `count` to arrive: then it may read what all have written.
  LC_HD bool is_last_of(uint32_t shared, uint32_t* counter, int32_t count) const {
    sync_threads();
    if (thread_idx() == 0) store_shared(shared + kArrivedAt, arrive(counter, 1u));
    sync_threads();
    const bool is_last = load_shared<uint32_t>(shared + kArrivedAt) == static_cast<uint32_t>(count) - 1;
    if (is_last && thread_idx() == 0) store_global(counter, 0u);  // for the next launch
    return is_last;
  }

  // Adds `count` partial results, `step` slots apart, in ascending order. The result goes to `to`, or else to the first
  // of them.
  LC_HD void add(int64_t slot, int64_t step, int32_t count, bf16* to) const {
    const int head = thread_idx() / kShare, first = thread_idx() % kShare * 4;
    float most = minus_infinity();
    LC_UNROLL_BY(8) for (int32_t i = 0; i < count; ++i) {
      const float max = load_global(maxima + (slot + i * step) * kHeads + head);
      most = max > most ? max : most;
    }
    constexpr int kEach = kLora / 4 / kShare;
    Float4 sum[kEach] = {};
    float weight = 0;
    LC_UNROLL_BY(1) for (int32_t i = 0; i < count; ++i) {
      const int64_t row = (slot + i * step) * kHeads + head;
      const float factor = exp2_approx(load_global(maxima + row) - most);
      weight = fma_rn(load_global(weights + row), factor, weight);
      const float* const from = sums + row * kLora + first;
      LC_UNROLL for (int j = 0; j < kEach; ++j) {
        const Float4 x = load_global(reinterpret_cast<const Float4*>(from + j * kShare * 4));
        LC_UNROLL for (int k = 0; k < 4; ++k) sum[j].v[k] = fma_rn(x.v[k], factor, sum[j].v[k]);
      }
    }
    if (to) {
      const float inverse = 1.0f / weight;
      bf16* const row = to + head * out_strides[1] + first;
      LC_UNROLL for (int j = 0; j < kEach; ++j) {
        LC_UNROLL for (int k = 0; k < 4; ++k) sum[j].v[k] = mul_rn(sum[j].v[k], inverse);
        store_global(reinterpret_cast<Word2*>(row + j * kShare * 4),
                     Word2{pack_bf16(sum[j].v[0], sum[j].v[1]), pack_bf16(sum[j].v[2], sum[j].v[3])});
      }
      return;
    }
    sync_warp();  // all lanes of a head have read its maximum and weight
    const int64_t row = slot * kHeads + head;
    LC_UNROLL for (int j = 0; j < kEach; ++j)
        store_global(reinterpret_cast<Float4*>(sums + row * kLora + first + j * kShare * 4), sum[j]);
    if (first == 0) {
      store_global(maxima + row, most);
      store_global(weights + row, weight);
    }
  }
};

}  // namespace longcat::gpu
