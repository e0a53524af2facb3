// Chunks of sequences as Python tests pass them.
#pragma once

#include <tuple>
#include <vector>

#include "engine/batch_buffers.h"

namespace longcat {

// For each sequence (block table, first position, ids); sequences with generated tokens come first.
using Chunks = std::vector<std::tuple<std::vector<int32_t>, int64_t, std::vector<int32_t>>>;

inline std::vector<Chunk> chunk_views(const Chunks& chunks, size_t num_generated) {
  std::vector<Chunk> views;
  for (const auto& [blocks, start, ids] : chunks)
    views.push_back({.token_ids = ids, .start = start, .blocks = blocks, .generated = views.size() < num_generated});
  return views;
}

}  // namespace longcat
