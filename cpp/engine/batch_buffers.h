// Chunks of sequences laid out as one ForwardBatch on the device.
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
};

class BatchBuffers {
 public:
  BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence);

  // Valid until the next call.
  ForwardBatch upload(std::span<const Chunk> chunks);

 private:
  Tensor to_device(const Buffer& buffer, const std::vector<int32_t>& values);

  Device& device_;
  Buffer token_ids_, positions_, sequence_idx_, query_starts_, block_tables_;
  std::vector<int32_t> host_token_ids_, host_positions_, host_sequence_idx_, host_query_starts_, host_block_tables_;
};

}  // namespace longcat
