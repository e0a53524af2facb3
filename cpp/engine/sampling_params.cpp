#include "engine/sampling_params.h"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "base/error.h"

namespace longcat {

namespace {

template <class Value>
void require(bool condition, const char* field, Value found, const std::string& allowed) {
  if (!condition) throw std::invalid_argument(str_cat(field, "=", found, "; expected ", allowed));
}

}  // namespace

void check(const SamplingParams& params, int64_t vocab_size) {
  const auto require_ids = [&](const char* field, const std::vector<int32_t>& ids) {
    for (const int32_t id : ids)
      require(id >= 0 && id < vocab_size, field, id, str_cat("ids from 0 to ", vocab_size - 1));
  };
  const auto require_count = [&](const char* field, int64_t count) {
    require(count >= -1 && count <= vocab_size, field, count, str_cat("-1 (off) to ", vocab_size));
  };
  const auto require_penalty = [&](const char* field, double value) {
    require(value >= -2 && value <= 2, field, value, "-2 to 2");
  };
  require(params.max_tokens >= 1 || (params.max_tokens == 0 && params.prompt_logprobs >= 0), "max_tokens",
          params.max_tokens, "at least 1, or 0 with prompt_logprobs");
  require(params.min_tokens >= 0 && params.min_tokens <= params.max_tokens, "min_tokens", params.min_tokens,
          str_cat("0 to max_tokens=", params.max_tokens));
  require(std::isfinite(static_cast<float>(params.temperature)) && params.temperature >= 0, "temperature",
          params.temperature, "0 (greedy) or a positive number");
  require(params.top_k >= 0 && params.top_k <= std::numeric_limits<int32_t>::max(), "top_k", params.top_k,
          "0 (off) to 2147483647");
  require(params.top_p > 0 && params.top_p <= 1, "top_p", params.top_p, "more than 0 and at most 1");
  require(params.min_p >= 0 && params.min_p <= 1, "min_p", params.min_p, "0 to 1");
  const float repetition_penalty = static_cast<float>(params.repetition_penalty);
  require(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty", params.repetition_penalty,
          "a positive number");
  require_penalty("presence_penalty", params.presence_penalty);
  require_penalty("frequency_penalty", params.frequency_penalty);
  require_count("logprobs", params.logprobs);
  require_count("prompt_logprobs", params.prompt_logprobs);
  require_ids("stop_token_ids", params.stop_token_ids);
  require_ids("allowed_token_ids", params.allowed_token_ids);
  for (const std::vector<int32_t>& word : params.bad_words) require_ids("bad_words", word);
  for (const LogitBias& bias : params.logit_bias) {
    require_ids("logit_bias", {bias.token_id});
    require(std::isfinite(bias.bias), "logit_bias", bias.bias, "a finite number");
  }
}

SamplingRow sampling_row(const SamplingParams& p, int64_t num_prompt_tokens, int64_t num_tokens) {
  const bool may_stop = num_tokens - num_prompt_tokens >= p.min_tokens;
  return {.temperature = p.temperature,
          .top_k = static_cast<int32_t>(p.top_k),
          .top_p = p.top_p,
          .min_p = p.min_p,
          .repetition_penalty = p.repetition_penalty,
          .presence_penalty = p.presence_penalty,
          .frequency_penalty = p.frequency_penalty,
          .seed = p.seed,
          .sample_idx = p.sample_idx,
          .position = static_cast<int32_t>(num_tokens) - 1,
          .num_prompt_tokens = static_cast<int32_t>(num_prompt_tokens),
          .logit_bias = p.logit_bias,
          .bad_words = p.bad_words,
          .banned_ids = may_stop ? std::span<const int32_t>{} : p.stop_token_ids,
          .allowed_ids = p.allowed_token_ids};
}

}  // namespace longcat
