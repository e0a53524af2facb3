// What one step computes: rows of tokens, and where each sequence's history lies in the paged cache.
#pragma once

#include "base/tensor.h"

namespace longcat {

constexpr int64_t kBlockSize = 64;  // tokens in a block of the KV cache

// The tokens of a sequence are neighbours in the batch and have consecutive positions (a chunk). Position p of
// sequence s lies in slot block_tables[s][p / 64] * 64 + p % 64 of the cache; block 0 is the null block, where
// padded rows write. All tensors are int32 on the device.
struct ForwardBatch {
  Tensor token_ids;     // [num_tokens]
  Tensor positions;     // [num_tokens] absolute, from 0
  Tensor sequence_idx;  // [num_tokens] row of block_tables
  Tensor query_starts;  // [num_sequences + 1] first token of each sequence in the batch
  Tensor block_tables;  // [num_sequences, max_blocks]

  int64_t num_tokens() const { return token_ids.size(0); }
  int64_t num_sequences() const { return block_tables.size(0); }
};

inline int64_t slot_of(const int32_t* block_table, int64_t position) {
  return block_table[position / kBlockSize] * kBlockSize + position % kBlockSize;
}

inline int64_t slot_of(const ForwardBatch& batch, int64_t sequence, int64_t position) {
  return slot_of(batch.block_tables.row<int32_t>(sequence), position);
}

}  // namespace longcat
