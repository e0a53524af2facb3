// Tiles of latent rows from anywhere in the cache, which MLA decode (mla_decode.h) loads for a list of positions.
#pragma once

#include "cuda/kernels/mla_work.h"
#include "ops/batch.h"

namespace longcat::gpu {

// The lists of the tokens that select.
struct MlaLists {
  const int32_t* selected;  // [num_tokens, stride]
  int64_t stride;           // [elements]

  // Null for a token that attends to all positions.
  LC_HD const int32_t* of(const MlaTokens& tokens, int32_t token) const {
    return tokens.selects(token) ? selected + token * stride : nullptr;
  }
};

// Copies kRows rows to a stage, whose rows are kStageRow bytes apart. They are those of the positions list[begin..end),
// or without a list of the positions [begin, end). Rows behind the end repeat the last, and their weights are zero. 8
// threads copy a row, 128 bytes at a time: so a thread looks up two addresses, and no bank is met twice.
template <uint32_t kRowBytes, uint32_t kStageRow, int kThreads, int kRows>
LC_HD void copy_rows(uint32_t stage, const unsigned char* latents, int64_t block_bytes, const int32_t* block_table,
                     const int32_t* list, int32_t begin, int32_t end) {
  constexpr int kBlock = static_cast<int>(kBlockSize), kOfRow = 8;
  const int lane = thread_idx() % kOfRow;
  LC_UNROLL for (int first = 0; first < kRows; first += kThreads / kOfRow) {
    const int row = first + thread_idx() / kOfRow;
    const int32_t index = begin + row < end ? begin + row : end - 1;
    const int32_t position = list ? load_global(list + index) : index;
    const int64_t block = load_global(block_table + position / kBlock);
    const unsigned char* const from = latents + block * block_bytes + position % kBlock * kRowBytes;
    LC_UNROLL for (uint32_t copy = 0; copy < kRowBytes / 16; copy += kOfRow) {
      const uint32_t at = (copy + lane) * 16;
      if (at < kRowBytes) cp_async(stage + row * kStageRow + at, from + at);
    }
  }
}

}  // namespace longcat::gpu
