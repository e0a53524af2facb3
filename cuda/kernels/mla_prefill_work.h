// The prompt chunks that a launch of MLA prefill serves, and the places of their keys and values.
//
// Keys and values of a chunk's whole history lie one chunk after the other, each from a multiple of kKeyTile positions
// on. A block finds its item by the sums over the chunks before: 32 chunks at a time.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

constexpr int32_t kKeyTile = 128;  // [positions]

struct PrefillChunks {
  const int32_t* positions;     // [num_tokens]
  const int32_t* query_starts;  // [num_sequences + 1]
  int32_t first_sequence, last_sequence;
  int32_t end_position;  // tokens from this position on are left out

  struct Item {
    int32_t sequence = 0, row = 0;  // the chunk's first row of the batch
    int32_t start = 0, count = 0;   // position of that row; rows. No rows: there is no such item
    int32_t number = 0;             // of the tile in the chunk
    int32_t first_key_tile = 0;     // of the chunk
    LC_HD int32_t end() const { return start + count; }
  };

  // Item `number`: tiles of kRows keys, or of kRows queries. Collective.
  template <bool kKeys, int32_t kRows>
  LC_HD Item find(int32_t number) const {
    int32_t key_tiles = 0;  // of the chunks before
    for (int32_t first = first_sequence; first < last_sequence; first += 32) {
      const int32_t sequence = first + lane_idx();
      int32_t row = 0, start = 0, count = 0;
      if (sequence < last_sequence) {
        row = load_global(query_starts + sequence);
        count = load_global(query_starts + sequence + 1) - row;
        start = count > 0 ? load_global(positions + row) : 0;
        const int32_t left = end_position - start;
        count = left < count ? left : count;
        count = count < 0 ? 0 : count;
      }
      const int32_t own_keys = count > 0 ? (start + count + kKeyTile - 1) / kKeyTile : 0;
      const int32_t own = ((kKeys && count > 0 ? start + count : count) + kRows - 1) / kRows;
      int32_t items = own, keys = own_keys;  // of the lanes up to this one
      LC_UNROLL for (int delta = 1; delta < 32; delta *= 2) {
        const int32_t items_below = shuffle_up(items, delta), keys_below = shuffle_up(keys, delta);
        items += lane_idx() >= delta ? items_below : 0;
        keys += lane_idx() >= delta ? keys_below : 0;
      }
      const uint32_t reached = ballot(number < items);
      if (reached != 0) {
        const int lane = lowest_bit(reached);
        return {.sequence = first + lane,
                .row = shuffle(row, lane),
                .start = shuffle(start, lane),
                .count = shuffle(count, lane),
                .number = number - shuffle(items - own, lane),
                .first_key_tile = key_tiles + shuffle(keys - own_keys, lane)};
      }
      number -= shuffle(items, 31);
      key_tiles += shuffle(keys, 31);
    }
    return {};
  }
};

}  // namespace longcat::gpu
