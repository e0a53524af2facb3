// What one step computes: moves of cache blocks, chunks of sequences, and the draws from their rows.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/sequence.h"

namespace longcat {

// Moves of whole blocks before the step's forward pass, in their order.
struct BlockMove {
  enum class Kind : uint8_t { copy, save, load, drop } kind;  // save: to host block, load: from it, drop: forget it
  int32_t block = -1;                                         // copy: from; save: from; load: to
  int32_t other_block = -1;                                   // copy: to; save, load, drop: host block
};

struct PlannedChunk {
  std::shared_ptr<Sequence> sequence;
  int64_t start = 0, count = 0;
  bool generated = false;
  int32_t source = -1;             // row of the sampled ids of the step before that holds the last token
  std::vector<int32_t> token_ids;  // without that one
  std::vector<int32_t> blocks;
  int64_t score_begin = 0, score_end = 0;  // positions of the chunk whose successors' log-probabilities are wanted
  std::vector<int32_t> score_ids = {};     // and those successors
  bool samples = false;                    // its last row is sampled from
  int64_t num_guesses = 0;                 // its last tokens, and as many rows before the last are sampled from, too
  // For guesses by the MTP layer:
  int32_t next_token_id = -1;  // what follows a chunk that is not sampled from
  int64_t num_drafts = 0;      // guesses to make after this step's draws, at most
};

// A draw from a row of a chunk.
struct PlannedSample {
  std::shared_ptr<Sequence> sequence;
  size_t chunk = 0;
  int64_t guess = 0;       // how many guesses of the chunk its history holds
  int64_t num_tokens = 0;  // of the history
  bool ends = false;       // nothing is drawn: max_tokens is 0
};

struct StepPlan {
  std::vector<BlockMove> moves;
  std::vector<PlannedChunk> chunks;  // of generated tokens first
  std::vector<PlannedSample> samples;

  bool empty() const { return moves.empty() && chunks.empty(); }
  int64_t num_tokens() const {
    int64_t total = 0;
    for (const PlannedChunk& chunk : chunks) total += chunk.count;
    return total;
  }
};

}  // namespace longcat
