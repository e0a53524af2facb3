// Layers for FewTokenLinear whose tokens are rows of x, in their order.
#pragma once

#include "cuda/kernels/few_token_linear.h"
#include "cuda/kernels/silu.h"

namespace longcat::gpu {

// A result as the layer's type rounds it.
LC_HD inline float rounded(float value) { return low_bf16(pack_bf16(value, 0)); }
template <class T>
LC_HD inline T as(float value) {
  if constexpr (sizeof(T) == 2) {
    return bf16{static_cast<uint16_t>(pack_bf16(value, 0))};
  } else {
    return value;
  }
}

// silu(gate) * up. Both are rounded to bf16 first: the same bits as two bf16 layers and SiluMul.
LC_HD inline float silu_mul(float gate, float up) { return mul_rn(silu(rounded(gate)), rounded(up)); }

// out = x W^T. More tokens are taken by slices of kMostTokens. Grid: slices * out_features / 16.
template <class Out, int kNumPlanes = 1, int kMostTokens = 64>
struct PlainLayer {
  static constexpr int kPlanes = kNumPlanes, kRowsApart = 8, kSlice = kMostTokens;
  const bf16* weight;    // [kPlanes, out_features, K]; out_features is a multiple of 16
  int64_t plane_stride;  // [elements], with several planes
  Out* out;              // [T, out_features]
  int64_t out_stride;    // [elements]
  int32_t tiles;         // out_features / 16
  int32_t num_tokens;

  LC_HD FewTokenTile tile(int32_t depth) const {
    const int32_t block = static_cast<int32_t>(block_idx()), begin = block / tiles * kSlice;
    const int64_t column = int64_t{block % tiles} * 16;
    const bf16* const first = weight + column * depth;
    return {{first, first + 8 * int64_t{depth}}, column, begin, num_tokens - begin, 0};
  }
  LC_HD int64_t input_row(const FewTokenTile& tile, int token) const { return tile.begin + token; }
  LC_HD void store(const FewTokenTile& tile, int token, int row, float low, float high) const {
    Out* const to = out + (tile.begin + token) * out_stride + tile.column + row;
    store_global(to, as<Out>(low));
    store_global(to + 8, as<Out>(high));
  }
};

// Two layers on one x, q_a and kv_a. Grid: the sum of out_features / 16.
struct JoinedLayer {
  static constexpr int kPlanes = 1, kRowsApart = 8;
  const bf16* weights[2];  // [out_features[i], K]; out_features is a multiple of 16
  bf16* outs[2];           // [T, out_features[i]]
  int64_t out_strides[2];  // [elements]
  int32_t tiles;           // of the first layer: its out_features / 16
  int32_t num_tokens;

  LC_HD FewTokenTile tile(int32_t depth) const {
    const bool second = block_idx() >= tiles;
    const int64_t column = (block_idx() - (second ? tiles : 0)) * 16;
    const bf16* const first = (second ? weights[1] : weights[0]) + column * depth;
    return {{first, first + 8 * int64_t{depth}}, column, 0, num_tokens, second};
  }
  LC_HD int64_t input_row(const FewTokenTile&, int token) const { return token; }
  LC_HD void store(const FewTokenTile& tile, int token, int row, float low, float high) const {
    bf16* const to = tile.part ? outs[1] + token * out_strides[1] : outs[0] + token * out_strides[0];
    store_global(to + tile.column + row, as<bf16>(low));
    store_global(to + tile.column + row + 8, as<bf16>(high));
  }
};

// out = silu(x G^T) * (x U^T): of a block's 16 rows, 8 are of G and 8 of U. Grid: out_features / 8.
struct GateUpLayer {
  static constexpr int kPlanes = 1, kRowsApart = 0;
  const bf16* gate;    // [out_features, K]; out_features is a multiple of 8
  const bf16* up;      // [out_features, K]
  bf16* out;           // [T, out_features]
  int64_t out_stride;  // [elements]
  int32_t num_tokens;

  LC_HD FewTokenTile tile(int32_t depth) const {
    const int64_t column = block_idx() * 8;
    return {{gate + column * depth, up + column * depth}, column, 0, num_tokens, 0};
  }
  LC_HD int64_t input_row(const FewTokenTile&, int token) const { return token; }
  LC_HD void store(const FewTokenTile& tile, int token, int row, float low, float high) const {
    store_global(out + token * out_stride + tile.column + row, as<bf16>(silu_mul(low, high)));
  }
};

}  // namespace longcat::gpu
