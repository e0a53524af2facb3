// How a request chooses its tokens and when it ends.
#pragma once

#include <cstdint>
#include <vector>

namespace longcat {

struct SamplingParams {
  int64_t max_tokens = 1024;
  double temperature = 1;         // 0: greedy
  int64_t top_k = 0;              // 0: off
  double top_p = 1;               // in (0, 1]
  double repetition_penalty = 1;  // > 0
  uint64_t seed = 0;
  std::vector<int32_t> stop_token_ids;  // the end token included, unless it is to be ignored
};

// Throws std::invalid_argument that names the field, what was given and what is allowed.
void check(const SamplingParams& params, int64_t vocab_size);

}  // namespace longcat
