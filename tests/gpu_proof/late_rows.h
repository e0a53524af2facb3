// A layer of the proof of Fp8Linear: PlainLayer from row kFirst of W on. So two blocks have rows of two blocks of 128.
#pragma once

#include "cuda/kernels/few_token_layers.h"

namespace longcat::gpu {

template <class Out>
struct LateRows : PlainLayer<Out, 1, 32> {
  static constexpr int64_t kFirst = 112;

  LC_HD FewTokenTile tile(int32_t depth) const {
    FewTokenTile tile = PlainLayer<Out, 1, 32>::tile(depth);
    for (const bf16*& rows : tile.rows) rows += kFirst * depth;
    tile.column += kFirst;
    return tile;
  }
};

}  // namespace longcat::gpu
