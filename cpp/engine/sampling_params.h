// The sampling parameters of a request.
#pragma once

#include <cstdint>
#include <tuple>
#include <vector>

#include "base/num_members.h"
#include "ops/ops.h"

namespace longcat {

struct SamplingParams {
  int64_t max_tokens = 1024;      // [tokens] 0 only with prompt_logprobs
  int64_t min_tokens = 0;         // [tokens] output before a stop id may follow
  double temperature = 1;         // 0: greedy
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // in (0, 1]
  double min_p = 0;               // in [0, 1]
  double repetition_penalty = 1;  // > 0
  double presence_penalty = 0;    // in [-2, 2]
  double frequency_penalty = 0;   // in [-2, 2]
  uint64_t seed = 0;
  int32_t sample_idx = 0;               // index among the n completions of a request
  std::vector<int32_t> stop_token_ids;  // stop ids of the request, and the end token unless ignore_eos
  std::vector<LogitBias> logit_bias;
  std::vector<std::vector<int32_t>> bad_words;
  std::vector<int32_t> allowed_token_ids;  // empty: all ids
  int64_t logprobs = -1;                   // most likely ids to report beside each new token; -1: no log-probabilities
  int64_t prompt_logprobs = -1;            // as logprobs, for each prompt token but the first
  bool constrained = false;                // each new token waits for a mask (Engine::set_mask)
};

template <class T>
struct SamplingField {
  const char* name;
  T SamplingParams::* member;
};

// All members of SamplingParams, once: the Python class and the messages between ranks are made from this list.
inline constexpr auto kSamplingFields = std::tuple{
    SamplingField{"max_tokens", &SamplingParams::max_tokens},
    SamplingField{"min_tokens", &SamplingParams::min_tokens},
    SamplingField{"temperature", &SamplingParams::temperature},
    SamplingField{"top_k", &SamplingParams::top_k},
    SamplingField{"top_p", &SamplingParams::top_p},
    SamplingField{"min_p", &SamplingParams::min_p},
    SamplingField{"repetition_penalty", &SamplingParams::repetition_penalty},
    SamplingField{"presence_penalty", &SamplingParams::presence_penalty},
    SamplingField{"frequency_penalty", &SamplingParams::frequency_penalty},
    SamplingField{"seed", &SamplingParams::seed},
    SamplingField{"sample_idx", &SamplingParams::sample_idx},
    SamplingField{"stop_token_ids", &SamplingParams::stop_token_ids},
    SamplingField{"logit_bias", &SamplingParams::logit_bias},
    SamplingField{"bad_words", &SamplingParams::bad_words},
    SamplingField{"allowed_token_ids", &SamplingParams::allowed_token_ids},
    SamplingField{"logprobs", &SamplingParams::logprobs},
    SamplingField{"prompt_logprobs", &SamplingParams::prompt_logprobs},
    SamplingField{"constrained", &SamplingParams::constrained},
};
static_assert(std::tuple_size_v<decltype(kSamplingFields)> == num_members<SamplingParams>(),
              "kSamplingFields lacks a member of SamplingParams: ranks would draw by different parameters");

// Calls f(name, field) for each member of `params`, const or not, in the order of the list.
template <class Params, class F>
void for_each_field(Params& params, F&& f) {
  std::apply([&](const auto&... field) { (f(field.name, params.*field.member), ...); }, kSamplingFields);
}

// Throws std::invalid_argument when a value is out of range. The message names the field, the value and the range.
void check(const SamplingParams& params, int64_t vocab_size);

// Returns the row of Ops::sample for the token behind the first `num_tokens` tokens of a sequence. The caller fills in
// the row of the logits, the sequence and the mask. The row refers to `params`.
SamplingRow sampling_row(const SamplingParams& params, int64_t num_prompt_tokens, int64_t num_tokens);

}  // namespace longcat
