// The sampling parameters of a request.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/ops.h"

namespace longcat {

struct SamplingParams {
  int64_t max_tokens = 1024;      // 0 only with prompt_logprobs
  int64_t min_tokens = 0;         // output tokens before a stop id may follow
  double temperature = 1;         // 0: greedy
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // in (0, 1]
  double min_p = 0;               // in [0, 1]
  double repetition_penalty = 1;  // > 0
  double presence_penalty = 0;    // in [-2, 2]
  double frequency_penalty = 0;   // in [-2, 2]
  uint64_t seed = 0;
  int32_t sample_idx = 0;               // index among the n completions of a request
  std::vector<int32_t> stop_token_ids;  // with the end token, unless ignore_eos
  std::vector<LogitBias> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;
  std::vector<int32_t> allowed_token_ids;  // empty: all
  int64_t logprobs = -1;                   // most likely ids to report beside each new token; -1: no log-probabilities
  int64_t prompt_logprobs = -1;            // the same for each prompt token but the first
  bool constrained = false;                // each token waits for a mask (Engine::set_mask)
};

// Throws std::invalid_argument, which names the field, the value and the allowed range.
void check(const SamplingParams& params, int64_t vocab_size);

// The row of Ops::sample for the token behind the first `num_tokens` of a sequence. The caller fills in the row of
// logits, the sequence and the mask. The row refers to `params`.
SamplingRow sampling_row(const SamplingParams& params, int64_t num_prompt_tokens, int64_t num_tokens);

}  // namespace longcat
