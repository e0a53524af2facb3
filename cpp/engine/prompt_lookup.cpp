#include "engine/prompt_lookup.h"

#include <algorithm>

namespace longcat {

std::span<const int32_t> look_up(std::span<const int32_t> token_ids, int64_t num_tokens, const PromptLookup& lookup) {
  const int64_t size = static_cast<int64_t>(token_ids.size());
  int64_t best = 0, best_end = 0;  // number of agreeing tokens, and the position behind them
  for (int64_t end = size - 1; end > 0 && best < lookup.max_match; --end) {
    const int64_t most = std::min(lookup.max_match, end);
    int64_t match = 0;
    while (match < most &&
           token_ids[static_cast<size_t>(end - 1 - match)] == token_ids[static_cast<size_t>(size - 1 - match)])
      ++match;
    if (match > best) {
      best = match;
      best_end = end;
    }
  }
  if (best < std::max<int64_t>(lookup.min_match, 1)) return {};
  return token_ids.subspan(static_cast<size_t>(best_end), static_cast<size_t>(std::min(num_tokens, size - best_end)));
}

}  // namespace longcat
