// One answer on its way: its tokens, how far they are computed, and what it holds.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/sampling_params.h"
#include "engine/step_output.h"

namespace longcat {

class OutputQueue;

using Clock = std::chrono::steady_clock;

struct Sequence {
  enum class State : uint8_t { waiting, running, finished };

  int64_t request_id = -1;
  int64_t group = -1;  // the request id that began the group of this request: one call, one client's body
  SamplingParams params;
  int64_t num_prompt_tokens = 0;
  int64_t max_tokens = 0;                   // of output, after max_model_len
  std::shared_ptr<OutputQueue> queue;       // where its outputs go; null: step() returns them
  std::shared_ptr<OutputQueue> mask_queue;  // of a constrained one: asks there for masks, an output without
                                            // finish_reason each; token_id is what came last, -1 for the first

  // --- tokens ------------------------------------------------------------------------------------------------------
  std::vector<int32_t> token_ids;  // prompt, then output as far as the host has seen it
  int64_t num_pending = 0;      // newest tokens, drawn or about to be, that the host has not seen: at most one a step
                                // under way
  int32_t pending_row = -1;     // row of the newest in the ids that the last step draws
  int64_t num_scheduled = 0;    // tokens whose latents are in the cache once the launched steps are done
  std::vector<int32_t> drafts;  // guesses at what follows, by the MTP layer
  std::vector<TokenLogprobs> prompt_logprobs;
  int64_t num_scored = 0;  // prompt tokens whose log-probabilities are computed or launched, beginning with token 1

  int64_t num_tokens() const { return static_cast<int64_t>(token_ids.size()) + num_pending; }
  int64_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  int64_t num_uncomputed() const { return num_tokens() - num_scheduled; }

  // --- what it holds -----------------------------------------------------------------------------------------------
  State state = State::waiting;
  bool is_short = false;   // runs ahead of its turn (Scheduler::admit_short)
  int64_t num_passed = 0;  // short requests that ran ahead while this one was first in the queue
  std::vector<int32_t> blocks;
  int64_t num_published = 0;                     // blocks
  uint64_t prefix_uid = 0;                       // of the last published one (BlockManager)
  std::vector<int32_t> swapped;                  // host blocks that hold its latents while it waits
  std::vector<std::shared_ptr<Sequence>> forks;  // other samples of its prompt, that begin when it is computed

  // --- masks -------------------------------------------------------------------------------------------------------
  int64_t masked_tokens = -1;  // output tokens that `mask` has seen; a constrained sequence waits for the newest
  std::vector<uint32_t> mask;  // [ceil(vocab_size / 32)] bit i: id i may follow; empty: all
  Clock::time_point mask_due;  // when waiting for one

  // --- times -------------------------------------------------------------------------------------------------------
  Clock::time_point arrival, first_step{}, first_token{};
  RequestStats stats;
};

}  // namespace longcat
