// Layers for FewTokenLinear whose weights are those of experts. A list on the device names the work: an item is an
// expert and some of its rows. No inputs are copied to permuted order: the load of x gathers its tokens.
//
// Rows are the picks in permuted order: sorted by expert, those of one expert by token. Grid: the most items there may
// be, times out_features / 8 or / 16; blocks beyond the list's end have no work.
#pragma once

#include "cuda/kernels/few_token_layers.h"

namespace longcat::gpu {

// Rows [begin, end) of one expert: 1 to kTokens.
struct ExpertRows {
  int32_t expert, begin, end;
};

struct ExpertList {
  const ExpertRows* items;   // [*num_items]
  const int32_t* num_items;  // [1]

  // Item `index`; no rows beyond the end. The list is of the grid before.
  LC_HD ExpertRows item(int64_t index) const {
    wait_for_prior_grid();
    return index < load_global(num_items) ? load_global(items + index) : ExpertRows{0, 0, 0};
  }
};

// The matrices of one projection, [out_features, K] each. By value, so that a recorded graph contains them.
struct ExpertMatrices {
  static constexpr int kMost = 256;  // two of them are 4 KiB of kernel parameters
  const bf16* of[kMost];
};

// out[row] = silu(x[token of row] G^T) * (x[token of row] U^T).
struct ExpertGateUpLayer {
  static constexpr int kPlanes = 1, kRowsApart = 0;
  ExpertList list;
  ExpertMatrices gates, ups;
  const int32_t* tokens;  // [rows]: the token of each row
  bf16* out;              // [rows, out_features]
  int64_t out_features;   // a multiple of 8

  LC_HD FewTokenTile tile(int32_t depth) const {
    const int64_t tiles = out_features / 8, column = block_idx() % tiles * 8;
    const ExpertRows item = list.item(block_idx() / tiles);
    if (item.end == item.begin) return {};
    const int64_t at = column * depth;
    return {{gates.of[item.expert] + at, ups.of[item.expert] + at}, column, item.begin, item.end - item.begin, 0};
  }
  LC_HD int64_t input_row(const FewTokenTile& tile, int token) const {
    return load_global(tokens + tile.begin + token);
  }
  LC_HD void store(const FewTokenTile& tile, int token, int row, float low, float high) const {
    store_global(out + (tile.begin + token) * out_features + tile.column + row, as<bf16>(silu_mul(low, high)));
  }
};

// out[row] = x[row] W^T: the down projection.
struct ExpertDownLayer {
  static constexpr int kPlanes = 1, kRowsApart = 8;
  ExpertList list;
  ExpertMatrices weights;
  bf16* out;             // [rows, out_features]
  int64_t out_features;  // a multiple of 16

  LC_HD FewTokenTile tile(int32_t depth) const {
    const int64_t tiles = out_features / 16, column = block_idx() % tiles * 16;
    const ExpertRows item = list.item(block_idx() / tiles);
    if (item.end == item.begin) return {};
    const bf16* const first = weights.of[item.expert] + column * depth;
    return {{first, first + 8 * int64_t{depth}}, column, item.begin, item.end - item.begin, 0};
  }
  LC_HD int64_t input_row(const FewTokenTile& tile, int token) const { return tile.begin + token; }
  LC_HD void store(const FewTokenTile& tile, int token, int row, float low, float high) const {
    bf16* const to = out + (tile.begin + token) * out_features + tile.column + row;
    store_global(to, as<bf16>(low));
    store_global(to + 8, as<bf16>(high));
  }
};

}  // namespace longcat::gpu
