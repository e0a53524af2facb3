#include "engine/sampling_params.h"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "base/error.h"

namespace longcat {

namespace {

template <class Value>
void require(bool condition, const char* field, Value found, const std::string& allowed) {
  if (!condition) throw std::invalid_argument(str_cat(field, "=", found, " is not possible: expected ", allowed));
}

}  // namespace

void check(const SamplingParams& params, int64_t vocab_size) {
  require(params.max_tokens >= 1, "max_tokens", params.max_tokens, "at least 1");
  require(std::isfinite(params.temperature) && params.temperature >= 0, "temperature", params.temperature,
          "0 (greedy) or a positive number");
  require(params.top_k >= 0 && params.top_k <= std::numeric_limits<int32_t>::max(), "top_k", params.top_k,
          "0 (off) or a positive integer");
  require(params.top_p > 0 && params.top_p <= 1, "top_p", params.top_p, "more than 0 and at most 1");
  require(std::isfinite(params.repetition_penalty) && params.repetition_penalty > 0, "repetition_penalty",
          params.repetition_penalty, "a positive number");
  for (const int32_t id : params.stop_token_ids)
    require(id >= 0 && id < vocab_size, "stop_token_ids", id, str_cat("ids from 0 to ", vocab_size - 1));
}

}  // namespace longcat
