// The input of one step: token rows, and the cache blocks of each sequence's history.
#pragma once

#include <span>

#include "base/tensor.h"

namespace longcat {

constexpr int64_t kBlockSize = 64;  // tokens in a block of the KV cache

// A context length rounded up to a power of two of at least 1,024 tokens, and at most `longest`. The device's launches
// depend on the bucket only. A recorded step thus serves all contexts of its bucket, at the cost of the largest.
constexpr int64_t context_bucket(int64_t positions, int64_t longest) {
  int64_t bucket = 1024;
  while (bucket < positions) bucket *= 2;
  return bucket < longest ? bucket : longest;
}

// What the host knows of a chunk of prompt tokens.
struct PromptChunk {
  int64_t count = 0;  // tokens
  int64_t end = 0;    // position behind the last
};

// The tokens of a sequence are adjacent in the batch and have consecutive positions (a chunk). Position p of sequence s
// is stored in cache block block_tables[s][p / 64], slot p % 64. Block 0 is the null block, to which padded rows write.
// Generated tokens come first, then prompt tokens. Their arithmetic differs (ops.h), and a chunk holds one kind only.
// All tensors are int32 on the device. prompt_chunks lies on the host; steps with prompts are never recorded.
struct ForwardBatch {
  Tensor token_ids;        // [num_tokens]
  Tensor positions;        // [num_tokens] absolute, from 0
  Tensor sequence_idx;     // [num_tokens] row of block_tables
  Tensor query_starts;     // [num_sequences + 1] row of each sequence's first token, then num_tokens
  Tensor block_tables;     // [num_sequences, max_blocks], rows may be strided
  Tensor num_real_tokens;  // [1] rows from this one on are padding: position 0 of the null block, no expert

  int64_t num_decode_tokens = 0;               // rows [0, num_decode_tokens) are generated tokens
  int64_t num_decode_sequences = 0;            // the first sequences, which own those rows
  int64_t decode_context = 0;                  // a context_bucket() above all positions of generated tokens
  std::span<const PromptChunk> prompt_chunks;  // of the sequences from num_decode_sequences on that have tokens

  int64_t num_tokens() const { return token_ids.size(0); }
  int64_t num_sequences() const { return block_tables.size(0); }
};

// Slot index of a position: block * 64 + slot in the block. It indexes the token lane.
constexpr int64_t slot_of(const int32_t* block_table, int64_t position) {
  return block_table[position / kBlockSize] * kBlockSize + position % kBlockSize;
}

inline int64_t slot_of(const ForwardBatch& batch, int64_t sequence, int64_t position) {
  return slot_of(batch.block_tables.row<int32_t>(sequence), position);
}

// One sub-layer's latents are [num_blocks, 64, row]: the rows of a block are contiguous, the blocks strided. In f32 and
// bf16 a row holds kv_lora_rank + qk_rope_head_dim values; in f8_e4m3 and i8 it holds bytes (Fp8Latent, Int8Latent).
template <class T>
T* latent_row(Tensor latents, const int32_t* block_table, int64_t position) {
  return latents.row<T>(block_table[position / kBlockSize]) + position % kBlockSize * latents.size(2);
}

// An fp8 latent row: kv_lora_rank e4m3 values in groups of 128, one float scale per group, then the rope values in
// bf16. It takes 656 bytes for 512 + 64 values. A group's scale is its largest magnitude / 448, or 1 when that is 0 or
// not finite.
struct Fp8Latent {
  static constexpr int64_t kGroup = 128;
  int64_t kv_lora_rank, rope_dim;

  constexpr int64_t num_groups() const { return (kv_lora_rank + kGroup - 1) / kGroup; }
  constexpr int64_t scales_offset() const { return (kv_lora_rank + 3) / 4 * 4; }
  constexpr int64_t rope_offset() const { return scales_offset() + 4 * num_groups(); }
  constexpr int64_t row_bytes() const { return (rope_offset() + 2 * rope_dim + 3) / 4 * 4; }
};

// An int8 latent row: one float scale per group, then kv_lora_rank 8-bit values and the rope values (12 bits in 16), in
// groups of 128. It takes 660 bytes for 512 + 64 values. A group's scale is its largest magnitude / 127 (rope: 2047),
// or NaN when a value of the group is not finite.
struct Int8Latent {
  static constexpr int64_t kGroup = 128;
  static constexpr float kLevels = 127, kRopeLevels = 2047;
  int64_t kv_lora_rank, rope_dim;

  static constexpr int64_t groups_of(int64_t values) { return (values + kGroup - 1) / kGroup; }
  constexpr int64_t num_groups() const { return groups_of(kv_lora_rank) + groups_of(rope_dim); }
  constexpr int64_t values_offset() const { return 4 * num_groups(); }
  constexpr int64_t rope_offset() const { return values_offset() + (kv_lora_rank + 1) / 2 * 2; }
  constexpr int64_t row_bytes() const { return (rope_offset() + 2 * rope_dim + 3) / 4 * 4; }
};

// Number of elements of a latent row in `dtype` (f32, bf16, f8_e4m3 or i8).
inline int64_t latent_row_size(DType dtype, int64_t kv_lora_rank, int64_t rope_dim) {
  switch (dtype) {
    case DType::f8_e4m3:
      return Fp8Latent{kv_lora_rank, rope_dim}.row_bytes();
    case DType::i8:
      return Int8Latent{kv_lora_rank, rope_dim}.row_bytes();
    default:
      return kv_lora_rank + rope_dim;
  }
}

// An int8 index key: its float scale, then index_head_dim 8-bit values. It takes 132 bytes for 128 values. The scale is
// the key's largest magnitude / 127, or NaN when a value is not finite.
struct Int8IndexKey {
  static constexpr float kLevels = 127;
  int64_t dim;

  static constexpr int64_t values_offset() { return 4; }
  constexpr int64_t row_bytes() const { return (values_offset() + dim + 3) / 4 * 4; }
};

// Number of elements of an index key in `dtype` (f32, bf16 or i8).
inline int64_t index_key_size(DType dtype, int64_t dim) {
  return dtype == DType::i8 ? Int8IndexKey{dim}.row_bytes() : dim;
}

}  // namespace longcat
