#include "engine/batch_buffers.h"

#include <algorithm>

namespace longcat {

BatchBuffers::Layout::Layout(int64_t tokens, int64_t sequences, int64_t blocks, int64_t values_beside)
    : num_tokens(tokens), num_sequences(sequences), max_blocks(blocks), num_beside(values_beside) {
  constexpr int64_t kAlignment = 16;  // 64 bytes
  const auto take = [&](int64_t& begin, int64_t count) {
    begin = size;
    size += (count + kAlignment - 1) / kAlignment * kAlignment;
  };
  take(num_real_tokens, 1);
  take(token_ids, tokens);
  take(positions, tokens);
  take(sequence_idx, tokens);
  take(sources, tokens);
  take(query_starts, sequences + 1);
  take(block_tables, sequences * blocks);
  take(beside, num_beside);
}

BatchBuffers::BatchBuffers(Device& device, int64_t max_tokens, int64_t max_sequences, int64_t max_blocks_per_sequence,
                           int num_slots, int64_t max_beside)
    : device_(device),
      max_tokens_(max_tokens),
      max_sequences_(max_sequences),
      max_blocks_(max_blocks_per_sequence),
      max_beside_(max_beside) {
  const int64_t bytes = 4 * Layout(max_tokens, max_sequences, max_blocks_per_sequence, max_beside).size;
  memory_ = Buffer(device, bytes);
  for (int slot = 0; slot < num_slots; ++slot) slots_.emplace_back().memory = HostBuffer(device, bytes);
}

void BatchBuffers::stage(std::span<const Chunk> chunks, int slot, int64_t num_rows, std::span<const int32_t> beside) {
  const auto tokens_of = [](const Chunk& chunk) {
    return static_cast<int64_t>(chunk.token_ids.size()) + (chunk.source >= 0 ? 1 : 0);
  };
  int64_t num_real_tokens = 0, most_blocks = 0, most_decode_blocks = 0;
  for (const Chunk& chunk : chunks) {
    num_real_tokens += tokens_of(chunk);
    most_blocks = std::max(most_blocks, static_cast<int64_t>(chunk.blocks.size()));
    if (chunk.generated) most_decode_blocks = most_blocks;  // these chunks come first
  }
  const int64_t num_chunks = static_cast<int64_t>(chunks.size());
  const int64_t num_padding = std::max<int64_t>(num_rows - num_real_tokens, 0);  // each is a sequence of one token
  const int64_t num_sequences = std::max(num_chunks + num_padding, num_rows), longest = max_blocks_ * kBlockSize;
  LC_CHECK(
      num_real_tokens + num_padding <= max_tokens_ && num_sequences <= max_sequences_ && most_blocks <= max_blocks_,
      num_real_tokens + num_padding, " tokens of ", num_sequences, " sequences in ", most_blocks, " blocks");
  const int64_t num_beside = static_cast<int64_t>(beside.size());
  LC_CHECK(num_beside <= max_beside_, num_beside, " values beside the batch");

  Slot& s = slots_[static_cast<size_t>(slot)];
  const int64_t blocks_in_tables = (context_bucket(most_blocks * kBlockSize, longest) + kBlockSize - 1) / kBlockSize;
  s.layout = Layout(num_real_tokens + num_padding, num_sequences, blocks_in_tables, num_beside);
  s.decode_context = context_bucket(most_decode_blocks * kBlockSize, longest);
  s.num_decode_tokens = s.num_decode_sequences = 0;
  s.prompt_chunks.clear();
  int32_t* const memory = static_cast<int32_t*>(s.memory.data());
  int32_t* const query_starts = memory + s.layout.query_starts;
  int32_t* const tables = memory + s.layout.block_tables;
  int64_t t = 0, sequence = 0;
  const auto add_token = [&](int32_t token_id, int64_t position, int32_t source) {
    memory[s.layout.token_ids + t] = token_id;
    memory[s.layout.positions + t] = static_cast<int32_t>(position);
    memory[s.layout.sequence_idx + t] = static_cast<int32_t>(sequence);
    memory[s.layout.sources + t] = source;
    ++t;
  };
  memory[s.layout.num_real_tokens] = static_cast<int32_t>(num_real_tokens);
  query_starts[0] = 0;
  for (const Chunk& chunk : chunks) {
    const int64_t count = tokens_of(chunk), num_blocks = static_cast<int64_t>(chunk.blocks.size());
    LC_CHECK(count > 0 && chunk.start + count <= num_blocks * kBlockSize, "chunk of ", count, " tokens at ",
             chunk.start, " in ", num_blocks, " blocks");
    LC_CHECK(!chunk.generated || s.num_decode_sequences == sequence, "generated tokens come first");
    for (size_t i = 0; i < chunk.token_ids.size(); ++i)
      add_token(chunk.token_ids[i], chunk.start + static_cast<int64_t>(i), -1);
    if (chunk.source >= 0) add_token(0, chunk.start + count - 1, chunk.source);
    // Zeros behind the blocks of a sequence name the null block, which no kernel reads.
    int32_t* const table = tables + sequence * blocks_in_tables;
    std::fill(std::copy(chunk.blocks.begin(), chunk.blocks.end(), table), table + blocks_in_tables, 0);
    query_starts[++sequence] = static_cast<int32_t>(t);
    if (chunk.generated) {
      s.num_decode_sequences = sequence;
      s.num_decode_tokens += count;
    } else {
      s.prompt_chunks.push_back({.count = count, .end = chunk.start + count});
    }
  }
  for (int64_t row = 0; row < num_padding; ++row) {
    add_token(0, 0, -1);
    query_starts[++sequence] = static_cast<int32_t>(t);
    ++s.num_decode_tokens;
  }
  while (sequence < num_sequences) query_starts[++sequence] = static_cast<int32_t>(t);  // there are no tokens
  std::fill(tables + num_chunks * blocks_in_tables, tables + num_sequences * blocks_in_tables, 0);
  if (num_rows > 0) s.num_decode_sequences = num_rows;
  std::ranges::copy(beside, memory + s.layout.beside);
}

ForwardBatch BatchBuffers::upload(int slot) {
  const Slot& s = slots_[static_cast<size_t>(slot)];
  const Layout& layout = s.layout;
  device_.upload(memory_.data(), s.memory.data(), 4 * layout.size);
  const auto list = [&](int64_t begin, int64_t count) {
    return Tensor(static_cast<int32_t*>(memory_.data()) + begin, DType::i32, {count});
  };
  sources_ = list(layout.sources, layout.num_tokens);
  beside_ = list(layout.beside, layout.num_beside);
  return {.token_ids = list(layout.token_ids, layout.num_tokens),
          .positions = list(layout.positions, layout.num_tokens),
          .sequence_idx = list(layout.sequence_idx, layout.num_tokens),
          .query_starts = list(layout.query_starts, layout.num_sequences + 1),
          .block_tables = list(layout.block_tables, layout.num_sequences * layout.max_blocks)
                              .reshape({layout.num_sequences, layout.max_blocks}),
          .num_real_tokens = list(layout.num_real_tokens, 1),
          .num_decode_tokens = s.num_decode_tokens,
          .num_decode_sequences = s.num_decode_sequences,
          .decode_context = s.decode_context,
          .prompt_chunks = s.prompt_chunks};
}

}  // namespace longcat
