#include "engine/batch_buffers.h"

#include <algorithm>

namespace longcat {

BatchBuffers::BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence)
    : device_(device),
      token_ids_(device, max_tokens * 4),
      positions_(device, max_tokens * 4),
      sequence_idx_(device, max_tokens * 4),
      query_starts_(device, (max_sequences + 1) * 4),
      block_tables_(device, max_sequences * max_blocks_per_sequence * 4) {}

Tensor BatchBuffers::to_device(const Buffer& buffer, const std::vector<int32_t>& values) {
  const Tensor out = buffer.tensor(DType::i32, {static_cast<int64_t>(values.size())});
  device_.copy_from_host(out.raw(), values.data(), out.num_bytes());
  return out;
}

ForwardBatch BatchBuffers::upload(std::span<const Chunk> chunks) {
  host_token_ids_.clear();
  host_positions_.clear();
  host_sequence_idx_.clear();
  host_query_starts_.assign(1, 0);
  size_t width = 1;  // blocks of the longest sequence of this step
  for (const Chunk& chunk : chunks) width = std::max(width, chunk.blocks.size());
  host_block_tables_.assign(chunks.size() * width, 0);

  for (size_t s = 0; s < chunks.size(); ++s) {
    const Chunk& chunk = chunks[s];
    for (size_t i = 0; i < chunk.token_ids.size(); ++i) {
      host_token_ids_.push_back(chunk.token_ids[i]);
      host_positions_.push_back(static_cast<int32_t>(chunk.start) + static_cast<int32_t>(i));
      host_sequence_idx_.push_back(static_cast<int32_t>(s));
    }
    host_query_starts_.push_back(static_cast<int32_t>(host_token_ids_.size()));
    std::copy(chunk.blocks.begin(), chunk.blocks.end(),
              host_block_tables_.begin() + static_cast<std::ptrdiff_t>(s * width));
  }
  return {.token_ids = to_device(token_ids_, host_token_ids_),
          .positions = to_device(positions_, host_positions_),
          .sequence_idx = to_device(sequence_idx_, host_sequence_idx_),
          .query_starts = to_device(query_starts_, host_query_starts_),
          .block_tables = to_device(block_tables_, host_block_tables_)
                              .reshape({static_cast<int64_t>(chunks.size()), static_cast<int64_t>(width)})};
}

}  // namespace longcat
