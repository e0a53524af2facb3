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

// One device copy of every tensor of a batch, and host copies ("slots") to fill while the device reads others.
class BatchBuffers {
 public:
  BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence,
               int num_slots = 1);

  // Fills a slot; rows are padded to `num_rows` in all (0: no padding), and so is the number of sequences, so that
  // batches of as many rows have the same shapes.
  void stage(std::span<const Chunk> chunks, int slot, int64_t num_rows = 0);

  // Inside submitted work: copies the slot to the device. The batch is valid until the next upload.
  ForwardBatch upload(int slot);

  // Both, for a single batch.
  ForwardBatch upload(std::span<const Chunk> chunks) {
    stage(chunks, 0);
    return upload(0);
  }

  // [num_tokens] of the batch last uploaded: see Ops::select_token_ids.
  Tensor sources() const { return sources_.tensor(DType::i32, {num_tokens_}); }

 private:
  struct Slot {
    std::vector<int32_t> token_ids, positions, sequence_idx, query_starts, sources;
    HostBuffer block_tables;  // [max_sequences, max_blocks]
    int64_t num_tables = 0;   // rows of block_tables that are filled
    int64_t widest = 0;       // blocks of the longest row that was ever filled
    int32_t num_real_tokens = 0;
    int64_t num_decode_tokens = 0, num_decode_sequences = 0;
  };
  Tensor to_device(const Buffer& buffer, const std::vector<int32_t>& values);

  Device& device_;
  int64_t max_tokens_, max_sequences_, max_blocks_, num_tokens_ = 0;
  Buffer token_ids_, positions_, sequence_idx_, query_starts_, sources_, block_tables_, num_real_tokens_;
  std::vector<Slot> slots_;
};

}  // namespace longcat
