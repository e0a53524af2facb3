// The list of attention pieces (kv_piece_end, ops.h) by index.
#pragma once

#include "cuda/kernels/qualifiers.h"
#include "ops/ops.h"

namespace longcat {

// First position of piece number `piece`.
LC_HD constexpr int64_t kv_piece_begin(int64_t piece) {
  constexpr int64_t kStarts[] = {0, 2048, 16384, 65536, 131072}, kSizes[] = {128, 256, 512, 1024, kMaxKvPiece};
  constexpr int kLast = 4;
  for (int kind = 0; kind < kLast; ++kind) {
    const int64_t pieces = (kStarts[kind + 1] - kStarts[kind]) / kSizes[kind];
    if (piece < pieces) return kStarts[kind] + piece * kSizes[kind];
    piece -= pieces;
  }
  return kStarts[kLast] + piece * kSizes[kLast];
}

// Number of the piece that contains `position`.
LC_HD constexpr int32_t kv_piece_index(int32_t position) {
  if (position < 2048) return position >> 7;
  if (position < 16384) return 16 + ((position - 2048) >> 8);
  if (position < 65536) return 72 + ((position - 16384) >> 9);
  if (position < 131072) return 168 + ((position - 65536) >> 10);
  return 232 + ((position - 131072) >> 11);
}

// Number of pieces that cover `positions`.
constexpr int64_t num_kv_pieces(int64_t positions) {
  return positions > 0 ? kv_piece_index(static_cast<int32_t>(positions - 1)) + 1 : 0;
}

}  // namespace longcat
