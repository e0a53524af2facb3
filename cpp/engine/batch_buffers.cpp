#include "engine/batch_buffers.h"

#include <algorithm>

namespace longcat {

BatchBuffers::BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence,
                           int num_slots)
    : device_(device),
      max_tokens_(max_tokens),
      max_sequences_(max_sequences),
      max_blocks_(max_blocks_per_sequence),
      token_ids_(device, max_tokens * 4),
      positions_(device, max_tokens * 4),
      sequence_idx_(device, max_tokens * 4),
      query_starts_(device, (max_sequences + 1) * 4),
      sources_(device, max_tokens * 4),
      block_tables_(device, max_sequences * max_blocks_per_sequence * 4),
      num_real_tokens_(device, 4) {
  for (int slot = 0; slot < num_slots; ++slot)
    slots_.emplace_back().block_tables = HostBuffer(device, max_sequences * max_blocks_per_sequence * 4);
}

void BatchBuffers::stage(std::span<const Chunk> chunks, int slot, int64_t num_rows) {
  Slot& s = slots_[static_cast<size_t>(slot)];
  for (std::vector<int32_t>* list : {&s.token_ids, &s.positions, &s.sequence_idx, &s.sources}) list->clear();
  s.query_starts.assign(1, 0);
  s.num_decode_tokens = s.num_decode_sequences = 0;
  int32_t* table = static_cast<int32_t*>(s.block_tables.data());
  const auto add_token = [&](int32_t token_id, int64_t position, int64_t sequence, int32_t source) {
    s.token_ids.push_back(token_id);
    s.positions.push_back(static_cast<int32_t>(position));
    s.sequence_idx.push_back(static_cast<int32_t>(sequence));
    s.sources.push_back(source);
  };
  const auto end_sequence = [&] { s.query_starts.push_back(static_cast<int32_t>(s.token_ids.size())); };

  int64_t sequence = 0;
  for (const Chunk& chunk : chunks) {
    const int64_t count = static_cast<int64_t>(chunk.token_ids.size()) + (chunk.source >= 0 ? 1 : 0);
    const int64_t num_blocks = static_cast<int64_t>(chunk.blocks.size());
    LC_CHECK(count > 0 && sequence < max_sequences_ && num_blocks <= max_blocks_ &&
                 chunk.start + count <= num_blocks * kBlockSize,
             "chunk of ", count, " tokens at ", chunk.start, " in ", num_blocks, " blocks");
    LC_CHECK(!chunk.generated || s.num_decode_sequences == sequence, "generated tokens come first");
    for (size_t i = 0; i < chunk.token_ids.size(); ++i)
      add_token(chunk.token_ids[i], chunk.start + static_cast<int64_t>(i), sequence, -1);
    if (chunk.source >= 0) add_token(0, chunk.start + count - 1, sequence, chunk.source);
    end_sequence();
    std::copy(chunk.blocks.begin(), chunk.blocks.end(), table + sequence * max_blocks_);
    s.widest = std::max(s.widest, num_blocks);
    ++sequence;
    if (chunk.generated) {
      s.num_decode_sequences = sequence;
      s.num_decode_tokens += count;
    }
  }
  s.num_real_tokens = static_cast<int32_t>(s.token_ids.size());
  for (; static_cast<int64_t>(s.token_ids.size()) < num_rows; ++sequence) {
    LC_CHECK(sequence < max_sequences_);
    add_token(0, 0, sequence, -1);
    end_sequence();
    table[sequence * max_blocks_] = 0;
    ++s.num_decode_tokens;
  }
  s.num_tables = sequence;
  for (; sequence < num_rows; ++sequence) end_sequence();  // without tokens
  if (num_rows > 0) s.num_decode_sequences = num_rows;
  LC_CHECK(static_cast<int64_t>(s.token_ids.size()) <= max_tokens_);
}

Tensor BatchBuffers::to_device(const Buffer& buffer, const std::vector<int32_t>& values) {
  const Tensor out = buffer.tensor(DType::i32, {static_cast<int64_t>(values.size())});
  device_.upload(out.raw(), values.data(), out.num_bytes());
  return out;
}

ForwardBatch BatchBuffers::upload(int slot) {
  const Slot& s = slots_[static_cast<size_t>(slot)];
  num_tokens_ = static_cast<int64_t>(s.token_ids.size());
  const int64_t num_sequences = static_cast<int64_t>(s.query_starts.size()) - 1;
  const Tensor tables = block_tables_.tensor(DType::i32, {max_sequences_, max_blocks_}).first(num_sequences);
  for (int64_t row = 0; row < s.num_tables; ++row)  // of long tables only what is used
    device_.upload(tables.row<int32_t>(row), static_cast<const int32_t*>(s.block_tables.data()) + row * max_blocks_,
                   s.widest * 4);
  to_device(sources_, s.sources);
  const Tensor num_real = num_real_tokens_.tensor(DType::i32, {1});
  device_.upload(num_real.raw(), &s.num_real_tokens, 4);
  return {.token_ids = to_device(token_ids_, s.token_ids),
          .positions = to_device(positions_, s.positions),
          .sequence_idx = to_device(sequence_idx_, s.sequence_idx),
          .query_starts = to_device(query_starts_, s.query_starts),
          .block_tables = tables,
          .num_real_tokens = num_real,
          .num_decode_tokens = s.num_decode_tokens,
          .num_decode_sequences = s.num_decode_sequences};
}

}  // namespace longcat
