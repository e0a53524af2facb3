// Stores results of tensor cores to rows of memory.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

// Stores two neighbouring pairs of an accumulator row: this lane's pairs of the 8 columns from `first` on, and of the 8
// behind. Lanes exchange one, so that each stores 8 bytes and four lanes store 32 in a row. Collective.
LC_HD inline void store_pairs(bf16* row, int first, uint32_t low, uint32_t high, bool valid) {
  const bool odd = lane_idx() % 2 == 1;
  const uint32_t other = shuffle_xor(odd ? low : high, 1);
  const Word2 words = odd ? Word2{other, high} : Word2{low, other};
  const int column = first + (odd ? 8 : 0) + lane_idx() % 4 / 2 * 4;
  if (valid) store_global(reinterpret_cast<Word2*>(row + column), words);
}

}  // namespace longcat::gpu
