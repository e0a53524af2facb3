// The selection of sparse attention: the best positions of a row of scores, without a sort. Two kernels, several blocks
// a row. A block has a slice of the positions.
//
//   SelectionBins   a histogram of the scores by the upper 11 bits of their order. The last block of a row to arrive
//                   finds the bin of the last position to select.
//   SelectionLists  marks the positions of better bins, a bit each, and collects the candidates, which are those of the
//                   bin. The last block finds the last candidate to select, 8 bits of its order a round. It marks the
//                   candidates down to it. Then it writes out the marked positions in ascending order.
//
// A score has a total order: the number, then the lower position. So lists depend neither on the slices, nor on the
// other rows, nor on the order of blocks. Few scores share a bin where scores differ: the last block then has some
// thousand candidates. Where many are equal, it alone walks over all of them.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

using namespace simt;

// Zero before the first call; each call leaves arrived and num_candidates as zero.
struct SelectionState {
  uint32_t arrived;  // blocks
  uint32_t num_candidates;
  uint32_t bin;   // of the last position to select
  uint32_t left;  // positions to select from this bin
};

struct Selection {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kBinBits = 11, kBins = 1 << kBinBits, kOrderBits = 32;
  static constexpr int32_t kSlice = 4096;  // positions of a block
  static constexpr int32_t kMaxContext = 1 << 24;

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kLastAt = 0;                      // whether this block is the last
  static constexpr uint32_t kFoundAt = kLastAt + 16;          // what a search finds
  static constexpr uint32_t kTotalsAt = kFoundAt + 16;        // [kWarps] u32, of a scan
  static constexpr uint32_t kOwnAt = kTotalsAt + kWarps * 4;  // what a kernel has of its own

  const float* scores;       // [rows at once, context]; written where a position may be chosen
  const int32_t* positions;  // [num_tokens]
  SelectionState* states;    // [rows at once]
  uint32_t* bins;            // [rows at once, kBins], zero before and after
  uint32_t* marks;           // [rows at once, context / 32]
  int32_t* candidates;       // [rows at once, context], in no order
  int32_t* selected;         // [num_tokens, selected_stride]
  int64_t selected_stride;   // [elements]
  int64_t context;           // a multiple of 32
  int32_t first_row, blocks_per_row;
  int32_t topk, init_tokens, local_tokens;  // SelectionRule

  LC_HD int32_t num_free() const { return topk - init_tokens - local_tokens; }

  // A block's part of a row.
  struct Part {
    int32_t row, of, position;  // row of the batch; of those at once
    int32_t begin, end;         // positions of the slice that may be chosen
    int32_t num_blocks;         // of this row
  };
  // Whether the block has a part.
  LC_HD bool open(Part& part) const {
    const int32_t block = static_cast<int32_t>(block_idx());
    part.of = block / blocks_per_row;
    part.row = first_row + part.of;
    part.position = load_global(positions + part.row);
    if (part.position < topk) return false;
    const int32_t slice = block % blocks_per_row, first = num_free() > 0 ? init_tokens / kSlice : 0;
    part.num_blocks = num_free() > 0 ? (part.position - local_tokens) / kSlice + 1 - first : 1;
    part.begin = slice * kSlice < init_tokens ? init_tokens : slice * kSlice;
    const int32_t chosen_end = part.position + 1 - local_tokens;
    part.end = (slice + 1) * kSlice < chosen_end ? (slice + 1) * kSlice : chosen_end;
    return slice >= first && slice < first + part.num_blocks;
  }
  LC_HD const float* scores_of(const Part& part) const { return scores + part.of * context; }
  LC_HD int32_t* candidates_of(const Part& part) const { return candidates + part.of * context; }
  LC_HD uint32_t* marks_of(const Part& part) const { return marks + part.of * (context / 32); }

  // Unsigned integers in the order of the scores; 0 for NaN.
  LC_HD static uint32_t order_of(float score) {
    const uint32_t bits = std::bit_cast<uint32_t>(score);
    const uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return score == score ? order : 0;
  }
  LC_HD static uint32_t bin_of(uint32_t order) { return order >> (kOrderBits - kBinBits); }

  // Calls use(position, its order, whether it may be chosen) for the positions of a slice, 32 at a time. Each thread
  // has the loads of 8 under way at a time. All lanes of a warp call use() together.
  template <class Use>
  LC_HD void for_each(const Part& part, const Use& use) const {
    constexpr int32_t kAhead = 8;
    const float* const from = scores_of(part);
    LC_UNROLL_BY(1)
    for (int32_t first = part.begin / 32 * 32 + warp_idx() * 32; first < part.end; first += kAhead * kThreads) {
      float values[kAhead];
      LC_UNROLL for (int32_t j = 0; j < kAhead; ++j) {
        const int32_t position = first + j * kThreads + lane_idx();
        values[j] = position >= part.begin && position < part.end ? load_global(from + position) : 0.0f;
      }
      LC_UNROLL for (int32_t j = 0; j < kAhead; ++j) {
        const int32_t at = first + j * kThreads, position = at + lane_idx();
        if (at < part.end) use(position, order_of(values[j]), position >= part.begin && position < part.end);
      }
    }
  }

  // Whether this block is the last of its row to come here.
  LC_HD bool is_last(uint32_t shared, const Part& part) const {
    sync_threads();
    if (thread_idx() == 0) store_shared(shared + kLastAt, arrive(&states[part.of].arrived, 1u));
    sync_threads();
    return load_shared<uint32_t>(shared + kLastAt) == static_cast<uint32_t>(part.num_blocks) - 1;
  }

  // Collective. Adds 1 to a bin in shared memory for each lane that counts. Lanes that want the bin of the first of
  // them add together: where most want one bin, they do not wait for each other.
  LC_HD static void count(uint32_t bins, uint32_t bin, bool counts) {
    const uint32_t votes = ballot(counts);
    if (votes == 0) return;
    const int leader = lowest_bit(votes);
    const bool follows = bin == shuffle(bin, leader);
    const uint32_t together = ballot(counts && follows);
    if (lane_idx() == leader) {
      atomic_add_shared(bins + bin * 4, static_cast<uint32_t>(count_bits(together)));
    } else if (counts && !(together >> lane_idx() & 1)) {
      atomic_add_shared(bins + bin * 4, 1u);
    }
  }

  // The sum of the values of the block's threads before this one. A barrier stands before the next call.
  LC_HD static uint32_t sum_before(uint32_t shared, uint32_t own) {
    uint32_t sum = own;
    LC_UNROLL for (int delta = 1; delta < 32; delta *= 2) {
      const uint32_t below = shuffle_up(sum, delta);
      sum += lane_idx() >= delta ? below : 0;
    }
    if (lane_idx() == 31) store_shared(shared + kTotalsAt + warp_idx() * 4, sum);
    sync_threads();
    uint32_t before = sum - own;
    LC_UNROLL for (int warp = 0; warp < kWarps; ++warp) {
      const uint32_t of_warp = load_shared<uint32_t>(shared + kTotalsAt + warp * 4);
      before += warp < warp_idx() ? of_warp : 0;
    }
    return before;
  }
};

struct SelectionBins : Selection {
  static constexpr uint32_t kBinsAt = kOwnAt;  // [kBins] u32
  static constexpr uint32_t kSharedBytes = kBinsAt + kBins * 4;
  static constexpr int kEach = kBins / kThreads;  // bins of a thread in the search

  // Thread 0 has the best bins. The bins are zero again behind this.
  LC_HD void find(uint32_t shared, const Part& part) const {
    uint32_t* const best = bins + int64_t{part.of} * kBins + kBins - 1 - thread_idx() * kEach;
    uint32_t counts[kEach], own = 0;
    LC_UNROLL for (int i = 0; i < kEach; ++i) {
      counts[i] = load_global(best - i);
      store_global(best - i, 0u);
      own += counts[i];
    }
    const uint32_t wanted = static_cast<uint32_t>(num_free());
    uint32_t before = sum_before(shared, own);
    if (thread_idx() == 0) store_global(&states[part.of].arrived, 0u);
    if (before >= wanted || before + own < wanted) return;
    int bin = kBins - 1 - thread_idx() * kEach;
    LC_UNROLL for (int i = 0; i < kEach; ++i) {
      if (before + counts[i] >= wanted) break;
      before += counts[i];
      --bin;
    }
    store_global(&states[part.of].bin, static_cast<uint32_t>(bin));
    store_global(&states[part.of].left, wanted - before);
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    Part part;
    if (!open(part)) return;
    for (int bin = thread_idx(); bin < kBins; bin += kThreads) store_shared(shared + kBinsAt + bin * 4, 0u);
    sync_threads();
    for_each(part, [&](int32_t, uint32_t order, bool counts) { count(shared + kBinsAt, bin_of(order), counts); });
    sync_threads();
    for (int bin = thread_idx(); bin < kBins; bin += kThreads) {
      const uint32_t own = load_shared<uint32_t>(shared + kBinsAt + bin * 4);
      if (own > 0) atomic_add_global(bins + int64_t{part.of} * kBins + bin, own);
    }
    if (is_last(shared, part)) find(shared, part);
  }
};

struct SelectionLists : Selection {
  static constexpr int32_t kCached = 2048;  // candidates in shared memory; others are read again in each round
  static constexpr int kDigits = 256;
  static constexpr uint32_t kDigitsAt = kOwnAt;                  // [kDigits] u32
  static constexpr uint32_t kCacheAt = kDigitsAt + kDigits * 4;  // [kCached] u64
  static constexpr uint32_t kSharedBytes = kCacheAt + kCached * 8;
  static_assert(kDigits == kThreads);

  // The order of the candidates: what their bin leaves of the score's, then 24 bits that put the lower position above.
  static constexpr int kPositionBits = 24, kRounds = 6;  // 8 bits each
  static_assert(kOrderBits - kBinBits + kPositionBits <= 8 * kRounds);
  LC_HD static int32_t position_of(uint64_t order) {
    return kMaxContext - 1 - static_cast<int32_t>(order & (kMaxContext - 1));
  }
  LC_HD uint64_t read(const Part& part, uint32_t i) const {
    const int32_t position = load_global(candidates_of(part) + i);
    const uint32_t order = order_of(load_global(scores_of(part) + position)) << kBinBits >> kBinBits;
    return uint64_t{order} << kPositionBits | static_cast<uint32_t>(kMaxContext - 1 - position);
  }
  LC_HD uint64_t candidate(uint32_t shared, const Part& part, uint32_t i) const {
    return i < kCached ? load_shared<uint64_t>(shared + kCacheAt + i * 8) : read(part, i);
  }

  // Marks the slice's positions of better bins, and collects its candidates.
  LC_HD void mark(const Part& part) const {
    const uint32_t bin = load_global(&states[part.of].bin);
    uint32_t* const words = marks_of(part);
    for_each(part, [&](int32_t position, uint32_t order, bool counts) {
      const uint32_t better = ballot(counts && bin_of(order) > bin);
      if (lane_idx() == 0) store_global(words + position / 32, better);
      const bool is_candidate = counts && bin_of(order) == bin;
      const uint32_t votes = ballot(is_candidate);
      if (votes == 0) return;
      uint32_t at = 0;
      if (lane_idx() == 0)
        at = atomic_add_global(&states[part.of].num_candidates, static_cast<uint32_t>(count_bits(votes)));
      at = shuffle(at, 0) + static_cast<uint32_t>(count_bits(votes & ((1u << lane_idx()) - 1)));
      if (is_candidate) store_global(candidates_of(part) + at, position);
    });
  }

  // The last block: the order of the candidate that is number `left`, the best first.
  LC_HD uint64_t find(uint32_t shared, const Part& part, uint32_t num_candidates, uint32_t left) const {
    const uint32_t digit = kDigits - 1 - thread_idx();  // thread 0 has the best
    uint64_t found = 0;
    LC_UNROLL_BY(1) for (int round = 0; round < kRounds; ++round) {
      const int shift = 8 * (kRounds - 1 - round);
      store_shared(shared + kDigitsAt + digit * 4, 0u);
      sync_threads();
      LC_UNROLL_BY(1) for (uint32_t first = warp_idx() * 32; first < num_candidates; first += kThreads) {
        const uint32_t i = first + lane_idx();
        const uint64_t order = i < num_candidates ? candidate(shared, part, i) : 0;
        const bool counts = i < num_candidates && order >> (shift + 8) == found >> (shift + 8);
        count(shared + kDigitsAt, static_cast<uint32_t>(order >> shift) % kDigits, counts);
      }
      sync_threads();
      const uint32_t own = load_shared<uint32_t>(shared + kDigitsAt + digit * 4);
      const uint32_t before = sum_before(shared, own);
      if (before < left && before + own >= left) {
        store_shared(shared + kFoundAt, digit);
        store_shared(shared + kFoundAt + 4, left - before);
      }
      sync_threads();
      found |= uint64_t{load_shared<uint32_t>(shared + kFoundAt)} << shift;
      left = load_shared<uint32_t>(shared + kFoundAt + 4);
    }
    return found;
  }

  // The last block: marks the candidates to select, then writes the marked positions.
  LC_HD void write_chosen(uint32_t shared, const Part& part, int32_t* to) const {
    const uint32_t num_candidates = load_global(&states[part.of].num_candidates);
    const uint32_t left = load_global(&states[part.of].left);
    uint32_t* const words = marks_of(part);
    for (uint32_t i = thread_idx(); i < num_candidates && i < kCached; i += kThreads)
      store_shared(shared + kCacheAt + i * 8, read(part, i));  // find() has a barrier before it reads them
    const uint64_t least = find(shared, part, num_candidates, left);
    for (uint32_t i = thread_idx(); i < num_candidates; i += kThreads) {
      const uint64_t order = candidate(shared, part, i);
      const int32_t position = position_of(order);
      if (order >= least) atomic_add_global(words + position / 32, 1u << (position % 32));
    }
    sync_threads();
    const int32_t first = init_tokens / 32, last = (part.position - local_tokens) / 32 + 1;
    const int32_t each = (last - first + kThreads - 1) / kThreads, begin = first + thread_idx() * each;
    const int32_t end = begin + each < last ? begin + each : last;
    uint32_t own = 0;
    LC_UNROLL_BY(8)
    for (int32_t word = begin; word < end; ++word) own += static_cast<uint32_t>(count_bits(load_global(words + word)));
    uint32_t at = sum_before(shared, own);
    LC_UNROLL_BY(1)
    for (int32_t word = begin; word < end; ++word)
      for (uint32_t bits = load_global(words + word); bits; bits &= bits - 1)
        store_global(to + at++, word * 32 + lowest_bit(bits));
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    Part part;
    if (!open(part)) return;
    if (num_free() > 0) mark(part);
    if (!is_last(shared, part)) return;
    int32_t* const to = selected + part.row * selected_stride;
    for (int32_t j = thread_idx(); j < init_tokens; j += kThreads) store_global(to + j, j);
    for (int32_t j = thread_idx(); j < local_tokens; j += kThreads)
      store_global(to + topk - local_tokens + j, part.position + 1 - local_tokens + j);
    if (num_free() > 0) write_chosen(shared, part, to + init_tokens);
    if (thread_idx() > 0) return;
    store_global(&states[part.of].num_candidates, 0u);
    store_global(&states[part.of].arrived, 0u);
  }
};

// More than one block fits a multiprocessor, and none needs an attribute.
static_assert(SelectionBins::kSharedBytes <= 48 << 10 && SelectionLists::kSharedBytes <= 48 << 10);

}  // namespace longcat::gpu
