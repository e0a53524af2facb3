// One of the n completions of a request: its tokens, how far they are computed, and the blocks it holds.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/draft_policy.h"
#include "engine/sampling_params.h"
#include "engine/step_output.h"

namespace longcat {

class OutputQueue;

using Clock = std::chrono::steady_clock;

struct Sequence {
  enum class State : uint8_t { waiting, running, finished };

  int64_t request_id = -1;
  int64_t group = -1;  // the first request id of the group, which is the requests of one call
  SamplingParams params;
  int64_t num_prompt_tokens = 0;
  int64_t max_tokens = 0;                   // most output tokens, after max_model_len is applied
  std::shared_ptr<OutputQueue> queue;       // gets the outputs; null: step() returns them
  std::shared_ptr<OutputQueue> mask_queue;  // of a constrained sequence: an output without finish_reason asks for the
                                            // mask behind its token_id (-1: for the first token)

  // --- tokens ------------------------------------------------------------------------------------------------------
  std::vector<int32_t> token_ids;  // the prompt, then the output that the host has seen
  int64_t num_pending = 0;         // tokens of steps in flight, which the host has not seen
  int32_t pending_row = -1;        // index of its newest token among the draws of the last step
  int64_t num_scheduled = 0;       // tokens whose latents are in the cache once the launched steps are done
  std::vector<int32_t> drafts;     // draft tokens of the MTP layer behind the newest token
  DraftAcceptance acceptance;      // of these
  std::vector<TokenLogprobs> prompt_logprobs;
  int64_t num_scored = 0;  // prompt tokens with log-probabilities, computed or in flight; token 0 has none

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()) + num_pending; }
  int64_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  int64_t num_uncomputed() const { return num_tokens() - num_scheduled; }

  // --- blocks and slot -----------------------------------------------------------------------------------------------
  State state = State::waiting;
  bool is_short = false;            // it was admitted ahead of its turn (Scheduler::admit_short)
  int64_t num_scheduled_once = -1;  // the largest num_scheduled at a preemption
  int64_t num_passed = 0;  // short sequences admitted while this one was first in the queue and waited for blocks
  std::vector<int32_t> blocks;
  int64_t num_cached_blocks = 0;                 // blocks that are in the prefix cache
  uint64_t prefix_uid = 0;                       // uid of the last of these blocks (BlockManager)
  std::vector<int32_t> swapped;                  // host blocks with its latents while it is swapped out
  std::vector<std::shared_ptr<Sequence>> forks;  // sequences that begin when this prompt is computed

  // --- masks -------------------------------------------------------------------------------------------------------
  int64_t masked_tokens = -1;  // number of output tokens before the token that `mask` is for; a constrained sequence
                               // waits for its newest mask
  std::vector<uint32_t> mask;  // [ceil(vocab_size / 32)] bit i: id i may follow; empty: all
  Clock::time_point mask_due;  // time when the wait for a mask ends in an error

  // --- times -------------------------------------------------------------------------------------------------------
  Clock::time_point arrival, first_step{}, first_token{};
  RequestStats stats;
};

}  // namespace longcat
