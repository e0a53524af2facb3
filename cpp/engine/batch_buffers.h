// Buffers that lay out chunks of sequences as one ForwardBatch on the device. They keep their addresses, so that a
// recorded graph can use them.
#pragma once

#include <span>
#include <vector>

#include "base/buffer.h"
#include "ops/batch.h"

namespace longcat {

// Consecutive tokens of one sequence, the first at position `start`. `blocks` reaches at least to the last token.
struct Chunk {
  std::span<const int32_t> token_ids;
  int64_t start = 0;
  std::span<const int32_t> blocks;
  bool generated = false;  // decode attention computes it; such chunks come first in a batch
  int32_t source = -1;     // row of the last token among the draws of the step before, when not in token_ids
};

// One batch on the device, and pinned slots on the host: the host fills one slot while the device reads another. The
// tensors of a batch lie in one piece of memory, so a step needs one copy. Their offsets depend only on the numbers of
// rows and sequences and on the context bucket, so a recorded graph finds them again.
class BatchBuffers {
 public:
  // max_beside: most values that a batch brings with it.
  BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence,
               int num_slots = 1, int64_t max_beside = 0);

  // Fills a slot. Rows and sequences are padded to `num_rows` (0: no padding), so that batches of equal padded rows
  // have equal shapes. Without chunks all rows are padding. beside: values that travel with the batch.
  void stage(std::span<const Chunk> chunks, int slot, int64_t num_rows = 0, std::span<const int32_t> beside = {});

  // The context bucket of the decoding sequences in a staged slot. When all sequences of the slot decode, its shapes
  // depend only on this bucket and the number of rows.
  int64_t decode_context(int slot) const { return slots_[static_cast<size_t>(slot)].decode_context; }

  // Copies the slot to the device. Call it inside submitted work. The batch is valid until the next upload, its
  // prompt_chunks until the slot is staged again.
  ForwardBatch upload(int slot);

  // Stages and uploads a single batch.
  ForwardBatch upload(std::span<const Chunk> chunks) {
    stage(chunks, 0);
    return upload(0);
  }

  // Returns, for each token of the last uploaded batch, its `sources` entry of Ops::select_token_ids: [num_tokens] i32.
  Tensor sources() const { return sources_; }

  // Returns the values beside the last uploaded batch: [n] i32.
  Tensor beside() const { return beside_; }

 private:
  // Offsets of the tensors of a batch in its memory [int32 values].
  struct Layout {
    Layout() = default;
    Layout(int64_t num_tokens, int64_t num_sequences, int64_t max_blocks, int64_t num_beside);

    int64_t num_tokens = 0, num_sequences = 0, max_blocks = 0, num_beside = 0;
    int64_t num_real_tokens = 0, token_ids = 0, positions = 0, sequence_idx = 0, sources = 0, query_starts = 0,
            block_tables = 0, beside = 0, size = 0;
  };
  struct Slot {
    HostBuffer memory;
    Layout layout;
    int64_t num_decode_tokens = 0, num_decode_sequences = 0, decode_context = 0;
    std::vector<PromptChunk> prompt_chunks;
  };

  Device& device_;
  int64_t max_tokens_, max_sequences_, max_blocks_, max_beside_;
  Buffer memory_;
  std::vector<Slot> slots_;
  Tensor sources_, beside_;
};

}  // namespace longcat
