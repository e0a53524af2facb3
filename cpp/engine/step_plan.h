// The plan of one step: moves of cache blocks, chunks of sequences, and the draws from the chunks' rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/sequence.h"

namespace longcat {

// A move of a whole block. The device makes all moves in their order before the step's forward pass.
struct BlockMove {
  enum class Kind : uint8_t { copy, swap_out, swap_in, drop } kind;  // drop: free the host block
  int32_t block = -1;                                                // the block to copy, to swap out, or to swap in to
  int32_t other_block = -1;                                          // copy: the target; all others: the host block
};

struct PlannedChunk {
  std::shared_ptr<Sequence> sequence;
  int64_t start = 0, count = 0;
  bool generated = false;
  int32_t source = -1;  // index of the last token among the draws of the step before, when it is not in token_ids
  std::vector<int32_t> token_ids;
  std::vector<int32_t> blocks;
  int64_t score_begin = 0, score_end = 0;  // positions whose next token gets log-probabilities
  std::vector<int32_t> score_ids = {};     // [score_end - score_begin] the next tokens of these positions
  bool is_drawn_from = false;              // a token is drawn from its last row
  // The chunk ends with this many draft tokens. A token is also drawn from the row before each of them.
  int64_t num_draft_tokens = 0;
  // For the MTP layer:
  int32_t next_token_id = -1;   // the token behind a chunk without draws
  int64_t num_next_drafts = 0;  // most draft tokens to make after the draws
};

// A draw of a token from one row of a chunk.
struct PlannedDraw {
  std::shared_ptr<Sequence> sequence;
  size_t chunk = 0;
  int64_t num_drafts = 0;  // draft tokens in its history
  int64_t num_tokens = 0;  // tokens in its history
  bool ends = false;       // max_tokens is 0: no token is drawn
};

struct StepPlan {
  std::vector<BlockMove> moves;
  std::vector<PlannedChunk> chunks;  // decoding chunks first
  std::vector<PlannedDraw> draws;

  bool empty() const { return moves.empty() && chunks.empty(); }
  // Whether each chunk is the next token of a sequence with its draft tokens.
  bool decodes_only() const {
    return std::ranges::all_of(chunks, [](const PlannedChunk& chunk) {
      return chunk.generated && chunk.is_drawn_from && chunk.count == 1 + chunk.num_draft_tokens;
    });
  }
  int64_t num_tokens() const {
    int64_t total = 0;
    for (const PlannedChunk& chunk : chunks) total += chunk.count;
    return total;
  }
};

}  // namespace longcat
