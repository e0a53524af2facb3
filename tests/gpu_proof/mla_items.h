// Writes out the items of a list, as the blocks of MLA decode find them.
#pragma once

#include "cuda/kernels/mla_work.h"

namespace longcat::gpu {

struct MlaItems {
  static constexpr int kThreads = 32;
  static constexpr uint32_t kSharedBytes = 16;
  MlaTokens tokens;
  int32_t first_token, last_token;
  MlaItem* items;  // [blocks of the grid]

  LC_HD void operator()(uint32_t) const {
    wait_for_prior_grid();
    const int32_t number = tokens.first_item(first_token) + static_cast<int32_t>(block_idx());
    const MlaItem item = tokens.item_at(number, first_token, last_token);
    if (lane_idx() == 0) store_global(items + block_idx(), item);
  }
};

}  // namespace longcat::gpu
