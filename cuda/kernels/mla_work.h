// The work of MLA decode (mla_decode.h): items of neighbouring tokens and one piece of their history.
//
// Tokens of one sequence that are neighbours in the batch form groups of at most kMlaGroup: the rows that verify draft
// tokens. In pieces of 128 positions, which fit in shared memory, a group is one item. Longer pieces are one item a
// token; the tokens of a group come one after the other, so that their blocks meet in the L2 cache.
//
// The list of a step is a prefix sum: the number of the first item of each token. A block finds its items in it.
#pragma once

#include "cuda/kernels/kv_pieces.h"
#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

constexpr int32_t kMlaGroup = 5;         // tokens: one, and 4 draft tokens
constexpr int32_t kMlaShortPieces = 16;  // pieces of 128 positions
static_assert(kv_piece_begin(kMlaShortPieces) == kMlaShortPieces * 128);

// One piece of the history of `count` tokens, all of which reach it.
struct MlaItem {
  int32_t token, count;  // rows of the batch; count 0: no work
  int32_t position;      // last_index() of the first token; the others follow
  int32_t sequence;      // row of the block tables
  int32_t piece, begin, end;
};

// Tokens of a batch that attend absorbed. A launch takes `round` of them.
//
// With sparse attention, a token from position topk on attends to topk selected positions. They are split into pieces
// by their index, like positions. There are no groups then, since each token has its own list.
struct MlaTokens {
  const int32_t* positions;     // [num_tokens]
  const int32_t* sequence_idx;  // [num_tokens]
  const int32_t* query_starts;  // [num_sequences + 1]
  // [num_tokens + 2]: most tokens of a group, the first item of each token, the end of the last
  int32_t* plan;
  int32_t num_tokens, round;
  int32_t topk = 0;             // 0: each token attends to all positions before it
  bool only_selecting = false;  // other tokens have no items

  LC_HD bool selects(int32_t token) const { return topk > 0 && load_global(positions + token) >= topk; }
  // The last index of what a token attends to: its own position, or the end of its list.
  LC_HD int32_t last_index(int32_t token) const {
    const int32_t position = load_global(positions + token);
    return topk > 0 && position >= topk ? topk - 1 : position;
  }
  LC_HD int32_t first_item(int32_t token) const { return load_global(plan + 1 + token); }

  // Number of tokens of the group that begins with this token; 0 where none does.
  LC_HD int32_t group_at(int32_t token, int32_t most) const {
    const int32_t sequence = load_global(sequence_idx + token);
    const int32_t place = (token - load_global(query_starts + sequence)) % most, in_round = token % round;
    if (place > 0 && in_round > 0) return 0;
    int32_t count = most - place;
    const int32_t ends[] = {load_global(query_starts + sequence + 1) - token, round - in_round, num_tokens - token};
    LC_UNROLL for (int i = 0; i < 3; ++i) count = ends[i] < count ? ends[i] : count;
    return count;
  }

  LC_HD int32_t num_items(int32_t token, int32_t count) const {
    if (only_selecting && !selects(token)) return 0;
    const int32_t pieces = kv_piece_index(last_index(token + count - 1)) + 1;
    return pieces <= kMlaShortPieces ? pieces : kMlaShortPieces + (pieces - kMlaShortPieces) * count;
  }

  // Item `number` of the launch whose tokens are [first, last). Collective.
  LC_HD MlaItem item_at(int32_t number, int32_t first, int32_t last) const {
    // The last token whose first item is not behind this one.
    while (last - first > 1) {
      const int32_t step = (last - first + 31) / 32, at = first + lane_idx() * step;
      const int32_t before = count_bits(ballot(at < last && first_item(at) <= number));
      first += (before - 1) * step;
      last = first + step < last ? first + step : last;
    }
    const int32_t count = group_at(first, load_global(plan)), position = last_index(first);
    const int32_t pieces = kv_piece_index(position + count - 1) + 1, rank = number - first_item(first);
    const int32_t shared = pieces < kMlaShortPieces ? pieces : kMlaShortPieces;
    MlaItem item{
        .token = first, .count = count, .position = position, .sequence = 0, .piece = rank, .begin = 0, .end = 0};
    if (rank >= shared) {
      item.piece = shared + (rank - shared) / count;
      item.token += (rank - shared) % count;
      item.position += (rank - shared) % count;
      item.count = 1;
    }
    item.sequence = load_global(sequence_idx + first);
    item.begin = static_cast<int32_t>(kv_piece_begin(item.piece));
    item.end = static_cast<int32_t>(kv_piece_end(item.begin));
    const int32_t below = item.begin - item.position;  // tokens that do not reach the piece
    if (below > 0) {
      item.token += below;
      item.position += below;
      item.count = below < item.count ? item.count - below : 0;
    }
    return item;
  }
};

// Makes the list: one block. Groups are formed only where there are `enough` items then: else some multiprocessors
// would idle. Groups change no bit.
struct MlaPlan {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr uint32_t kSharedBytes = kWarps * 4;

  MlaTokens tokens;
  int32_t enough;

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    int32_t most = tokens.topk > 0 ? 1 : kMlaGroup;
    while (true) {
      const int32_t total = plan(shared, most);
      if (most == 1 || total >= enough) break;
      most = 1;
    }
    if (thread_idx() == 0) store_global(tokens.plan, most);
  }

  // Returns the number of items.
  LC_HD int32_t plan(uint32_t shared, int32_t most) const {
    int32_t total = 0;
    for (int32_t first = 0; first < tokens.num_tokens; first += kThreads) {
      const int32_t token = first + thread_idx();
      int32_t items = 0;
      if (token < tokens.num_tokens) {
        const int32_t count = tokens.group_at(token, most);
        if (count > 0) items = tokens.num_items(token, count);
      }
      int32_t sum = items;  // of the lanes up to this one
      LC_UNROLL for (int delta = 1; delta < 32; delta *= 2) {
        const int32_t below = shuffle_up(sum, delta);
        sum += lane_idx() >= delta ? below : 0;
      }
      if (lane_idx() == 31) store_shared(shared + warp_idx() * 4, sum);
      sync_threads();
      int32_t before = total;
      LC_UNROLL for (int warp = 0; warp < kWarps; ++warp) {
        const int32_t of_warp = load_shared<int32_t>(shared + warp * 4);
        before += warp < warp_idx() ? of_warp : 0;
        total += of_warp;
      }
      if (token < tokens.num_tokens) store_global(tokens.plan + 1 + token, before + sum - items);
      sync_threads();  // the sums of the warps are free
    }
    if (thread_idx() == 0) store_global(tokens.plan + 1 + tokens.num_tokens, total);
    return total;
  }
};

}  // namespace longcat::gpu
