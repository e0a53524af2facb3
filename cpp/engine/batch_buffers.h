// Chunks of sequences laid out as one ForwardBatch on the device, in buffers that never move.
#pragma once

#include <span>
#include <vector>

#include "base/buffer.h"
#include "ops/batch.h"

namespace longcat {

// Consecutive tokens of one sequence, the first at position `start`; `blocks` holds at least the blocks up to the last.
struct Chunk {
  std::span<const int32_t> token_ids;
  int64_t start = 0;
  std::span<const int32_t> blocks;
  bool generated = false;  // decode arithmetic; such chunks come first
  int32_t source = -1;  // row of the ids sampled by the step before that holds the last token, when token_ids lacks it
};

// One device copy of a batch, and pinned host copies ("slots") to fill while the device reads another. All tensors of a
// batch lie in one piece of memory, so a step costs one copy. Where they lie depends only on the numbers of rows and
// sequences and on the context bucket: a recorded step of those finds them again.
class BatchBuffers {
 public:
  BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence,
               int num_slots = 1);

  // Fills a slot; rows are padded to `num_rows` in all (0: no padding), and so is the number of sequences, so that
  // batches of as many rows have the same shapes. Without chunks all rows are padding.
  void stage(std::span<const Chunk> chunks, int slot, int64_t num_rows = 0);

  // Context bucket of the generated tokens of a staged slot. Where it holds no others, its shapes depend on this and on
  // its number of rows.
  int64_t decode_context(int slot) const { return slots_[static_cast<size_t>(slot)].decode_context; }

  // Inside submitted work: copies the slot to the device. The batch is valid until the next upload.
  ForwardBatch upload(int slot);

  // Both, for a single batch.
  ForwardBatch upload(std::span<const Chunk> chunks) {
    stage(chunks, 0);
    return upload(0);
  }

  // [num_tokens] of the batch last uploaded: see Ops::select_token_ids.
  Tensor sources() const { return sources_; }

 private:
  // Where the tensors of a batch begin in its memory [int32 values].
  struct Layout {
    Layout() = default;
    Layout(int64_t num_tokens, int64_t num_sequences, int64_t max_blocks);

    int64_t num_tokens = 0, num_sequences = 0, max_blocks = 0;
    int64_t num_real_tokens = 0, token_ids = 0, positions = 0, sequence_idx = 0, sources = 0, query_starts = 0,
            block_tables = 0, size = 0;
  };
  struct Slot {
    HostBuffer memory;
    Layout layout;
    int64_t num_decode_tokens = 0, num_decode_sequences = 0, decode_context = 0;
  };

  Device& device_;
  int64_t max_tokens_, max_sequences_, max_blocks_;
  Buffer memory_;
  std::vector<Slot> slots_;
  Tensor sources_;
};

}  // namespace longcat
