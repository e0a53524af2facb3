// What a step brings a request: a token, or its end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longcat {

enum class FinishReason : uint8_t { none, stop, length, abort, error };
const char* name_of(FinishReason reason);

// Log-probabilities under the model's own logits, of a token and of the most likely ids.
struct TokenLogprobs {
  int32_t rank = 0;             // 1: no id is more likely
  std::vector<int32_t> ids;     // the token, then the most likely ones, best first
  std::vector<float> logprobs;  // of ids
};

// Costs of a request so far. Times in ms.
struct RequestStats {
  double queue_ms = 0;            // from arrival to the first step
  double prefill_ms = 0;          // to the first token
  double decode_ms = 0;           // to the last
  int64_t num_cached_tokens = 0;  // of the prompt, from the prefix cache
  int64_t num_preemptions = 0;
};

// A new token of a request, its end, or both.
struct StepOutput {
  int64_t request_id = 0;
  int32_t token_id = -1;  // -1: no token (error, abort, or max_tokens is 0)
  FinishReason finish_reason = FinishReason::none;
  std::string error = {};  // why, when finish_reason is error
  std::optional<TokenLogprobs> logprobs = {};
  std::vector<TokenLogprobs> prompt_logprobs = {};  // of prompt tokens 1.., with the first output
  RequestStats stats = {};
};

}  // namespace longcat
