// The result of a step for one sequence: a token, or its end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longcat {

enum class FinishReason : uint8_t { none, stop, length, abort, error };
const char* name_of(FinishReason reason);

// Log-probabilities of a token and of the most likely ids, under the model's own logits.
struct TokenLogprobs {
  int32_t rank = 0;             // rank of the token; 1: no id is more likely
  std::vector<int32_t> ids;     // the token, then the most likely ones, best first
  std::vector<float> logprobs;  // one for each of `ids` [nats]
};

// The times and counts of a sequence so far [ms].
struct RequestStats {
  double queue_ms = 0;            // from arrival to the first step
  double prefill_ms = 0;          // from the first step to the first token
  double decode_ms = 0;           // from the first token to the last
  int64_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  int64_t num_preemptions = 0;
};

// A new token of a sequence, its end, or both.
struct StepOutput {
  int64_t request_id = 0;
  int32_t token_id = -1;  // -1: no token (error, abort, or max_tokens is 0)
  FinishReason finish_reason = FinishReason::none;
  std::string error = {};  // what went wrong, when finish_reason is error
  std::optional<TokenLogprobs> logprobs = {};
  std::vector<TokenLogprobs> prompt_logprobs = {};  // of prompt tokens 1, 2, ...; with the first output
  RequestStats stats = {};
};

}  // namespace longcat
