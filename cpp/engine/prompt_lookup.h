// Draft tokens by prompt lookup (Saxena 2023): the tokens that followed an earlier occurrence of the newest ones. They
// cost nothing, and are accepted where a text repeats itself: edits of code, quotations, lists.
#pragma once

#include <cstdint>
#include <span>

namespace longcat {

// Draft tokens are made when at least the last min_match tokens occurred before.
struct PromptLookup {
  int64_t max_match = 4, min_match = 2;
};

// Finds the earlier occurrence that agrees with the end of `token_ids` in the most tokens, at most max_match; among
// equal ones the latest. Returns at most num_tokens tokens that follow it; none when fewer than min_match agree.
std::span<const int32_t> look_up(std::span<const int32_t> token_ids, int64_t num_tokens, const PromptLookup& lookup);

}  // namespace longcat
