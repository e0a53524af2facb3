// How a request chooses its tokens and when it ends.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace longcat {

struct SamplingParams {
  int64_t max_tokens = 1024;      // 0 only with prompt_logprobs
  int64_t min_tokens = 0;         // no stop id before that many
  double temperature = 1;         // 0: greedy
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // in (0, 1]
  double min_p = 0;               // in [0, 1]
  double repetition_penalty = 1;  // > 0
  double presence_penalty = 0;    // in [-2, 2]
  double frequency_penalty = 0;   // in [-2, 2]
  uint64_t seed = 0;
  int32_t sample_idx = 0;               // tells the n samples of one request apart
  std::vector<int32_t> stop_token_ids;  // the end token included, unless it is to be ignored
  std::vector<LogitBias> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;
  std::vector<int32_t> allowed_token_ids;  // empty: all
  int64_t logprobs = -1;                   // most likely ids reported beside each new token; -1: none at all
  int64_t prompt_logprobs = -1;            // the same for each prompt token but the first
  bool constrained = false;                // each token waits for a mask (Engine::set_mask)
};

// Throws std::invalid_argument that names the field, what was given and what is allowed.
void check(const SamplingParams& params, int64_t vocab_size);

// As a row for Ops::sample, for the token behind the first `num_tokens` of a sequence; which logits, which sequence of
// the batch and which mask is left to the caller. Reads `params` as long as it is used.
SamplingRow sampling_row(const SamplingParams& params, int64_t num_prompt_tokens, int64_t num_tokens);

}  // namespace longcat
