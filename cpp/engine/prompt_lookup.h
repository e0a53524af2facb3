// Guesses at what a sequence goes on with, from what it has said before (prompt lookup: Saxena 2023). They cost nothing
// to make, and are right where a text repeats itself: edits of code, quotations, lists.
#pragma once

#include <cstdint>
#include <span>

namespace longcat {

// A guess is made when the last min_match tokens, or more, occurred before.
struct PromptLookup {
  int64_t max_match = 4, min_match = 2;
};

// What followed the earlier occurrence that agrees with the end of `token_ids` in most tokens, of at most max_match; of
// equals the latest. At most num_tokens, none when fewer than min_match agree.
std::span<const int32_t> look_up(std::span<const int32_t> token_ids, int64_t num_tokens, const PromptLookup& lookup);

}  // namespace longcat
