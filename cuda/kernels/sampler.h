// The sampler: three kernels, several blocks a row of logits. A block has a slice of the vocabulary.
//
//   SamplerScores  bias, penalties and removals; the most likely id; the scores, which are logits / temperature. A
//                  greedy row ends here, and without options it is one pass over the logits.
//   SamplerBins    where top-k or top-p is on: a histogram of the scores by their distance from the largest, 16 bins a
//                  nat. It counts for top-k, else it sums probability masses. One bin has the threshold.
//   SamplerDraws   draws among the ids in likelier bins, and collects the candidates. Those are the ids of the
//                  threshold's bin, or with top-k of all bins down to it. Of them the last block finds the exact
//                  threshold, 8 bits of the key a round, and draws. Nothing is sorted.
//
// In each kernel the last block of a row to arrive goes on with the row. Every sum is of integers. Every choice has a
// total order (ties: the lowest id). The draw of an id depends on row and id alone. So ids depend neither on the
// slices, nor on the other rows, nor on the order of blocks. They are the CPU's (cpp/cpu/sample.cpp), but for the last
// bits of expf and log.
#pragma once

#include "cuda/kernels/sampling.h"
#include "cuda/kernels/simt.h"
#include "ops/philox.h"

namespace longcat::gpu {

using namespace simt;

// What the kernels know of a row. Zero before the first call; each call leaves arrived, overflows, num_candidates and
// most_likely as zero.
struct SamplerState {
  enum Kind : int32_t { done, draws_all, needs_bins };
  unsigned long long most_likely;  // key of a logit, then the complement of its id; 0: none yet
  unsigned long long below;        // mass in bins behind the threshold's
  unsigned long long total;        // mass of all ids
  uint32_t arrived;                // blocks
  uint32_t overflows;              // 1: a logit / temperature is not finite
  uint32_t num_candidates;
  Kind kind;
  float largest;      // score
  int32_t kept_bins;  // all ids in bins before this are kept
  int32_t last_bin;   // the candidates are those from there to here
  int32_t reserved;
};

struct alignas(16) ScoredId {
  double score;
  int32_t id;  // -1: none
  int32_t reserved;
};

struct Sampler {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int32_t kMaxSlice = 4096;  // ids of a block
  static constexpr int32_t kBins = 512, kBinsOfNat = 16;
  static constexpr int32_t kMaxVocab = 1 << 24;

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kLastAt = 0;                        // whether this block is the last
  static constexpr uint32_t kFoundAt = kLastAt + 16;            // where a threshold lies
  static constexpr uint32_t kTotalsAt = kFoundAt + 16;          // [kWarps] 64 bits, of a scan
  static constexpr uint32_t kBestsAt = kTotalsAt + kWarps * 8;  // [kWarps] ScoredId
  static constexpr uint32_t kOwnAt = kBestsAt + kWarps * 16;    // what a kernel has of its own

  int32_t* token_ids;                  // [rows]
  const float* logits;                 // [num_logits, vocab]
  int64_t logits_stride;               // [elements]
  const unsigned char* const* packed;  // [1]: PackedSamplingRows
  const int32_t* choice = nullptr;     // [rows]: how each is drawn, negative: it is not; null: as it is set
  const int32_t* lane;                 // [num_slots]
  const int32_t* block_tables;         // [num_sequences, max_blocks]
  int64_t block_table_stride;          // [elements]
  SamplerState* states;                // [rows at once]
  unsigned long long* bins;            // [rows at once, kBins], zero before and after
  float* scores;                       // [rows at once, vocab]
  int32_t* candidates;                 // [rows at once, vocab], in no order
  ScoredId* bests;                     // [rows at once, blocks a row]
  int32_t vocab, slice, blocks_per_row, first_row;

  // A block's part of a row.
  struct Part {
    const unsigned char* packed;
    const PackedSamplingRow* row;
    SamplerState* state;
    int32_t index, of, begin, count;  // row of the call; row of those at once; ids
    template <class T>
    LC_HD const T* list(const PackedList& list) const {
      return reinterpret_cast<const T*>(packed + list.offset);
    }
  };
  // Whether the call has this row.
  LC_HD bool open(Part& part) const {
    const int32_t block = static_cast<int32_t>(block_idx());
    part.of = block / blocks_per_row;
    part.index = first_row + part.of;
    part.packed = load_global(packed);
    const int32_t set = load_global(&reinterpret_cast<const PackedSamplingRows*>(part.packed)->num_rows);
    int32_t which = part.index;
    if (choice) {
      const int32_t chosen = load_global(choice + part.index);
      if (chosen < 0) return false;
      which = set + chosen;
    } else if (which >= set) {
      return false;
    }
    part.row = reinterpret_cast<const PackedSamplingRow*>(part.packed + sizeof(PackedSamplingRows)) + which;
    part.state = states + part.of;
    part.begin = block % blocks_per_row * slice;
    part.count = vocab - part.begin < slice ? vocab - part.begin : slice;
    return true;
  }
  LC_HD float* scores_of(const Part& part) const { return scores + int64_t{part.of} * vocab; }
  LC_HD int32_t* candidates_of(const Part& part) const { return candidates + int64_t{part.of} * vocab; }

  LC_HD static bool has_top_k(int32_t top_k, int32_t vocab) { return top_k > 0 && top_k < vocab; }
  LC_HD static bool is_finite(float x) { return x - x == 0; }

  // Calls use(i, load(i)) for all i < count, in ascending order for a thread. Each thread has the loads of 8 under way
  // at a time. All lanes of a warp call use() together: i may reach beyond, and the value is `none` there.
  template <class T, class Load, class Use>
  LC_HD static void for_each(int32_t count, T none, const Load& load, const Use& use) {
    constexpr int32_t kAhead = 8;
    LC_UNROLL_BY(1) for (int32_t first = warp_idx() * 32; first < count; first += kAhead * kThreads) {
      T values[kAhead];
      LC_UNROLL for (int32_t j = 0; j < kAhead; ++j) {
        const int32_t i = first + j * kThreads + lane_idx();
        values[j] = i < count ? load(i) : none;
      }
      LC_UNROLL for (int32_t j = 0; j < kAhead; ++j) if (first + j * kThreads < count)
          use(first + j * kThreads + lane_idx(), values[j]);
    }
  }

  // Whether this block is the last of its row to come here.
  LC_HD bool is_last(uint32_t shared, const Part& part) const {
    sync_threads();
    if (thread_idx() == 0) store_shared(shared + kLastAt, arrive(&part.state->arrived, 1u));
    sync_threads();
    return load_shared<uint32_t>(shared + kLastAt) == static_cast<uint32_t>(blocks_per_row) - 1;
  }

  // Scores beyond the last bin lie in it.
  LC_HD static int32_t bin_of(float largest, float score) {
    const float bin = mul_rn(largest - score, static_cast<float>(kBinsOfNat));
    return bin < kBins ? static_cast<int32_t>(bin) : kBins - 1;
  }

  // Collective. Adds weights of at most 2^40 to bins in shared memory, whose lower and upper halves are two arrays of
  // `count` words. Lanes that want the bin of the first of them add together: where most want one bin, they do not wait
  // for each other.
  LC_HD static void add_to_bins(uint32_t bins, uint32_t count, uint32_t bin, uint64_t weight) {
    const uint32_t votes = ballot(weight > 0);
    if (votes == 0) return;
    const int leader = lowest_bit(votes);
    const bool follows = bin == shuffle(bin, leader);
    const uint64_t sum = warp_sum(follows ? static_cast<uint32_t>(weight & 0xfffff) : 0) +
                         (uint64_t{warp_sum(follows ? static_cast<uint32_t>(weight >> 20) : 0)} << 20);
    if (follows) weight = lane_idx() == leader ? sum : 0;
    if (weight == 0) return;
    const uint32_t low = static_cast<uint32_t>(weight), at = bins + bin * 4;
    const uint32_t before = low ? atomic_add_shared(at, low) : 0;
    const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
    if (high) atomic_add_shared(at + count * 4, high);
  }
  LC_HD static uint64_t bin_at(uint32_t bins, uint32_t count, uint32_t bin) {
    return uint64_t{load_shared<uint32_t>(bins + (count + bin) * 4)} << 32 | load_shared<uint32_t>(bins + bin * 4);
  }
  LC_HD static void clear_bins(uint32_t bins, uint32_t count) {
    for (uint32_t i = static_cast<uint32_t>(thread_idx()); i < 2 * count; i += kThreads) store_shared(bins + i * 4, 0u);
  }

  // The sums of a block's values: of the threads before, and of all. A barrier stands before the next call.
  struct Sums {
    uint64_t before, total;
  };
  LC_HD static Sums sums_of(uint32_t shared, uint64_t own) {
    uint64_t sum = own;
    LC_UNROLL for (int delta = 1; delta < 32; delta *= 2) {
      const uint32_t low = shuffle_up(static_cast<uint32_t>(sum), delta);
      const uint32_t high = shuffle_up(static_cast<uint32_t>(sum >> 32), delta);
      sum += lane_idx() >= delta ? uint64_t{high} << 32 | low : 0;
    }
    if (lane_idx() == 31) store_shared(shared + kTotalsAt + warp_idx() * 8, sum);
    sync_threads();
    Sums sums{sum - own, 0};
    for (int warp = 0; warp < kWarps; ++warp) {
      const uint64_t of = load_shared<uint64_t>(shared + kTotalsAt + warp * 8);
      sums.before += warp < warp_idx() ? of : 0;
      sums.total += of;
    }
    return sums;
  }

  // Top-k: whether the ids up to here, the least likely first, are more than those to remove. Top-p: whether their
  // share is more than the share to remove.
  struct Threshold {
    bool counts;
    uint64_t kept, total;
    float removed_share;
    LC_HD bool passed(uint64_t sum) const {
      if (counts) return sum + kept > total;
      return static_cast<float>(static_cast<double>(sum) / static_cast<double>(total)) > removed_share;
    }
  };
  LC_HD static Threshold top_k_of(uint64_t count, int32_t top_k) {
    const uint64_t k = static_cast<uint64_t>(top_k);
    return {true, k < count ? k : count, count, 0};
  }
  LC_HD static Threshold top_p_of(uint64_t total, float removed_share) { return {false, 0, total, removed_share}; }

  LC_HD static ScoredId better(ScoredId a, ScoredId b) {
    if (a.id < 0) return b;
    if (b.id < 0) return a;
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
  }
  // The draws of a row from the ids that top-k and top-p keep.
  struct Draws {
    uint64_t seed;
    uint32_t position, sample_idx;
    float largest, min_p;
    ScoredId best;
    LC_HD explicit Draws(const Part& part)
        : seed(load_global(&part.row->seed)),
          position(static_cast<uint32_t>(load_global(&part.row->position))),
          sample_idx(static_cast<uint32_t>(load_global(&part.row->sample_idx))),
          largest(load_global(&part.state->largest)),
          min_p(load_global(&part.row->min_p)),
          best{0, -1, 0} {}
    // argmax of score + Gumbel noise is a draw from the softmax of the scores.
    LC_HD void add(float score, int32_t id) {
      if (expf(score - largest) < min_p && score != largest) return;
      const double uniform = sampling_uniform(seed, static_cast<uint32_t>(id), position, sample_idx);
      best = better(best, {score - log(-log(uniform)), id, 0});
    }
  };
  // The best of a block's threads. A barrier stands before the next call.
  LC_HD static ScoredId best_of_block(uint32_t shared, ScoredId best) {
    LC_UNROLL for (int mask = 16; mask > 0; mask /= 2) {
      const uint64_t bits = std::bit_cast<uint64_t>(best.score);
      const uint32_t low = shuffle_xor(static_cast<uint32_t>(bits), mask);
      const uint32_t high = shuffle_xor(static_cast<uint32_t>(bits >> 32), mask);
      const int32_t id = shuffle_xor(best.id, mask);
      best = better(best, {std::bit_cast<double>(uint64_t{high} << 32 | low), id, 0});
    }
    if (lane_idx() == 0) store_shared(shared + kBestsAt + warp_idx() * 16, best);
    sync_threads();
    for (int warp = 0; warp < kWarps; ++warp) best = better(best, load_shared<ScoredId>(shared + kBestsAt + warp * 16));
    return best;
  }
};

struct SamplerScores : Sampler {
  static constexpr uint32_t kSliceAt = kOwnAt;                    // [kMaxSlice] f32
  static constexpr uint32_t kMarksAt = kSliceAt + kMaxSlice * 4;  // [kMaxSlice] u32
  static constexpr uint32_t kSharedBytes = kMarksAt + kMaxSlice * 4;
  // Marks of the removals. Those of the history: 2 for each occurrence in the output, and at least 1 for any.
  static constexpr uint32_t kAllowed = 1, kForbidden = 2;

  // Calls f(place in the slice) where the block's slice has the id.
  template <class F>
  LC_HD static void if_here(const Part& part, int32_t id, const F& f) {
    const uint32_t at = static_cast<uint32_t>(id) - static_cast<uint32_t>(part.begin);
    if (at < static_cast<uint32_t>(part.count)) f(at * 4);
  }
  LC_HD int32_t history(const int32_t* table, int32_t position) const {
    return load_global(lane + slot_of_block(load_global(table + position / kBlockSize), position));
  }
  LC_HD static int64_t slot_of_block(int32_t block, int32_t position) {
    return int64_t{block} * kBlockSize + position % kBlockSize;
  }

  LC_HD bool is_edited(const PackedSamplingRow* row) const {
    return is_penalised(row) || load_global(&row->logit_bias.count) + load_global(&row->bad_word_ends.count) +
                                        load_global(&row->banned_ids.count) + load_global(&row->allowed_ids.count) +
                                        load_global(&row->mask.count) >
                                    0;
  }
  LC_HD static bool is_penalised(const PackedSamplingRow* row) {
    return load_global(&row->repetition_penalty) != 1 || load_global(&row->presence_penalty) != 0 ||
           load_global(&row->frequency_penalty) != 0;
  }

  // Puts the slice's logits into shared memory, with bias and penalties. The marks are zero then.
  LC_HD void add_penalties(uint32_t shared, const Part& part, const float* from, const int32_t* table) const {
    const int thread = thread_idx();
    for_each(
        part.count, 0.0f, [&](int32_t i) { return load_global(from + i); },
        [&](int32_t i, float logit) {
          if (i >= part.count) return;
          store_shared(shared + kSliceAt + i * 4, logit);
          store_shared(shared + kMarksAt + i * 4, 0u);
        });
    sync_threads();
    const PackedList biases = load_global(&part.row->logit_bias);
    for (int64_t b = thread; b < biases.count; b += kThreads) {
      const LogitBias bias = load_global(part.list<LogitBias>(biases) + b);
      if_here(part, bias.token_id, [&](uint32_t at) {
        store_shared(shared + kSliceAt + at, add_rn(load_shared<float>(shared + kSliceAt + at), bias.bias));
      });
    }
    if (!is_penalised(part.row)) return;
    const int32_t prompt = load_global(&part.row->num_prompt_tokens);
    for_each(
        load_global(&part.row->position) + 1, -1, [&](int32_t position) { return history(table, position); },
        [&](int32_t position, int32_t id) {
          if_here(part, id, [&](uint32_t at) {
            atomic_max_shared(shared + kMarksAt + at, 1u);
            if (position >= prompt) atomic_add_shared(shared + kMarksAt + at, 2u);
          });
        });
    sync_threads();
    const float repetition = load_global(&part.row->repetition_penalty);
    const double presence = load_global(&part.row->presence_penalty);
    const double frequency = load_global(&part.row->frequency_penalty);
    for (int32_t i = thread; i < part.count; i += kThreads) {
      const uint32_t mark = load_shared<uint32_t>(shared + kMarksAt + i * 4);
      if (mark == 0) continue;
      float logit = load_shared<float>(shared + kSliceAt + i * 4);
      if (repetition != 1) logit = logit < 0 ? mul_rn(logit, repetition) : logit / repetition;
      const int32_t count = static_cast<int32_t>(mark / 2);
      if (count > 0) logit = add_rn(logit, -static_cast<float>(presence + mul_rn(frequency, double(count))));
      store_shared(shared + kSliceAt + i * 4, logit);
      store_shared(shared + kMarksAt + i * 4, 0u);
    }
  }

  // Whether the history ends with all ids of a word but the last.
  LC_HD bool completes(const Part& part, const int32_t* table, const int32_t* word, int32_t prefix) const {
    const int32_t first = load_global(&part.row->position) + 1 - prefix;
    if (prefix < 0 || first < 0) return false;
    for (int32_t p = 0; p < prefix; ++p)
      if (history(table, first + p) != load_global(word + p)) return false;
    return true;
  }
  LC_HD void mark_removals(uint32_t shared, const Part& part, const int32_t* table) const {
    const auto mark = [&](int32_t id, uint32_t as) {
      if_here(part, id, [&](uint32_t at) { atomic_max_shared(shared + kMarksAt + at, as); });
    };
    const auto mark_all = [&](const PackedList& ids, uint32_t as) {
      for (int64_t i = thread_idx(); i < ids.count; i += kThreads) mark(load_global(part.list<int32_t>(ids) + i), as);
    };
    mark_all(load_global(&part.row->banned_ids), kForbidden);
    mark_all(load_global(&part.row->allowed_ids), kAllowed);
    const PackedList words = load_global(&part.row->bad_word_ends);
    const int32_t* const ids = part.list<int32_t>(load_global(&part.row->bad_word_ids));
    for (int64_t w = thread_idx(); w < words.count; w += kThreads) {
      const int32_t* const ends = part.list<int32_t>(words);
      const int32_t begin = w == 0 ? 0 : load_global(ends + w - 1), last = load_global(ends + w) - 1;
      if (completes(part, table, ids + begin, last - begin)) mark(load_global(ids + last), kForbidden);
    }
  }

  // Passes over the slice: the most likely id of each warp, and the scores. logit(i): of the slice's id i.
  template <class Logit>
  LC_HD void survey(const Part& part, const Logit& logit) const {
    const float temperature = load_global(&part.row->temperature);
    float* const to = scores_of(part) + part.begin;
    uint32_t best = 0, best_id = 0;  // of a thread, ids come in ascending order
    bool overflows = false;
    for_each(part.count, minus_infinity(), logit, [&](int32_t i, float x) {
      const bool is_number = x == x && x != -minus_infinity();
      const uint32_t key = !is_number ? ~0u : x == minus_infinity() ? 0 : order_key(x);
      if (key > best) {
        best = key;
        best_id = static_cast<uint32_t>(part.begin + i);
      }
      if (temperature == 0 || i >= part.count) return;
      const float score = x / temperature;
      overflows |= x != minus_infinity() && !is_finite(score);
      store_global(to + i, score);
    });
    const uint32_t most = warp_max(best);
    const uint32_t first = warp_max(best == most ? ~best_id : 0);
    const bool any_overflow = ballot(overflows) != 0;
    if (lane_idx() > 0 || most == 0) return;
    atomic_max_global(&part.state->most_likely, static_cast<unsigned long long>(uint64_t{most} << 32 | first));
    if (any_overflow) atomic_max_global(&part.state->overflows, 1u);
  }

  // One thread, when all blocks have surveyed.
  LC_HD void decide(const Part& part) const {
    SamplerState* const state = part.state;
    const uint64_t most_likely = load_global(&state->most_likely);
    const float temperature = load_global(&part.row->temperature);
    const float removed_share = load_global(&part.row->removed_share);
    const uint32_t key = static_cast<uint32_t>(most_likely >> 32);
    const bool broken = key == 0 || key == ~0u;  // no id, or a logit that is no number
    // A very low temperature is greedy. So is a top-p near 0: it leaves one id.
    const bool greedy = temperature == 0 || load_global(&state->overflows) > 0 || removed_share >= 1;
    const bool has_bins = has_top_k(load_global(&part.row->top_k), vocab) || removed_share > 0;
    store_global(token_ids + part.index, broken ? -1 : static_cast<int32_t>(~static_cast<uint32_t>(most_likely)));
    store_global(&state->kind, broken || greedy ? SamplerState::done
                               : has_bins       ? SamplerState::needs_bins
                                                : SamplerState::draws_all);
    store_global(&state->largest, value_of_key(key) / temperature);
    store_global(&state->kept_bins, kBins);
    store_global(&state->last_bin, kBins);
    store_global(&state->most_likely, 0ull);
    store_global(&state->overflows, 0u);
    store_global(&state->arrived, 0u);
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    Part part;
    if (!open(part)) return;
    const float* const from = logits + load_global(&part.row->logits_row) * logits_stride + part.begin;
    if (is_edited(part.row)) {
      const int32_t* const table = block_tables + load_global(&part.row->sequence) * block_table_stride;
      add_penalties(shared, part, from, table);
      sync_threads();
      mark_removals(shared, part, table);
      sync_threads();
      const bool only_allowed = load_global(&part.row->allowed_ids.count) > 0;
      const PackedList masks = load_global(&part.row->mask);
      survey(part, [&](int32_t i) {
        const uint32_t mark = load_shared<uint32_t>(shared + kMarksAt + i * 4);
        const int32_t id = part.begin + i;
        const bool removed = mark == kForbidden || (only_allowed && mark == 0) ||
                             (masks.count > 0 && !(load_global(part.list<uint32_t>(masks) + id / 32) >> (id % 32) & 1));
        return removed ? minus_infinity() : load_shared<float>(shared + kSliceAt + i * 4);
      });
    } else {
      survey(part, [&](int32_t i) { return load_global(from + i); });
    }
    if (is_last(shared, part) && thread_idx() == 0) decide(part);
  }
};

struct SamplerBins : Sampler {
  static constexpr uint32_t kSharedBytes = kOwnAt + kBins * 8;

  // The last block: the bin of the threshold. Thread t has a run of bins; the first has the least likely.
  LC_HD void find(uint32_t shared, const Part& part, bool counts) const {
    constexpr int32_t kEach = kBins / kThreads;
    unsigned long long* const from = bins + int64_t{part.of} * kBins;
    const int32_t first = kBins - 1 - thread_idx() * kEach;
    uint64_t weights[kEach], own = 0;
    LC_UNROLL for (int32_t i = 0; i < kEach; ++i) {
      weights[i] = load_global(from + first - i);
      store_global(from + first - i, 0ull);
      own += weights[i];
    }
    const Sums sums = sums_of(shared, own);
    const Threshold threshold = counts ? top_k_of(sums.total, load_global(&part.row->top_k))
                                       : top_p_of(sums.total, load_global(&part.row->removed_share));
    if (thread_idx() == 0) {
      store_global(&part.state->total, static_cast<unsigned long long>(sums.total));
      store_global(&part.state->arrived, 0u);
    }
    uint64_t before = sums.before;
    if (threshold.passed(before) || !threshold.passed(before + own)) return;
    int32_t bin = first;
    LC_UNROLL for (int32_t i = 0; i < kEach; ++i) {
      if (threshold.passed(before + weights[i])) break;
      before += weights[i];
      --bin;
    }
    store_global(&part.state->below, static_cast<unsigned long long>(before));
    store_global(&part.state->kept_bins, counts ? 0 : bin);
    store_global(&part.state->last_bin, bin);
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    Part part;
    if (!open(part) || load_global(&part.state->kind) != SamplerState::needs_bins) return;
    const bool counts = has_top_k(load_global(&part.row->top_k), vocab);
    const float largest = load_global(&part.state->largest);
    const float* const from = scores_of(part) + part.begin;
    clear_bins(shared + kOwnAt, kBins);
    sync_threads();
    for_each(
        part.count, minus_infinity(), [&](int32_t i) { return load_global(from + i); },
        [&](int32_t, float score) {
          const uint64_t weight = counts ? uint64_t{score != minus_infinity()} : mass_of(expf(score - largest));
          add_to_bins(shared + kOwnAt, kBins, static_cast<uint32_t>(bin_of(largest, score)), weight);
        });
    sync_threads();
    for (int32_t bin = thread_idx(); bin < kBins; bin += kThreads) {
      const uint64_t weight = bin_at(shared + kOwnAt, kBins, static_cast<uint32_t>(bin));
      if (weight > 0) atomic_add_global(bins + int64_t{part.of} * kBins + bin, static_cast<unsigned long long>(weight));
    }
    if (is_last(shared, part)) find(shared, part, counts);
  }
};

struct SamplerDraws : Sampler {
  static constexpr int32_t kCached = 2048;  // candidates in shared memory; more are read again in each round
  static constexpr int32_t kDigits = 256;
  static constexpr uint32_t kDigitsAt = kOwnAt;                  // [2][kDigits] u32
  static constexpr uint32_t kCacheAt = kDigitsAt + kDigits * 8;  // [kCached] u64
  static constexpr uint32_t kSharedBytes = kCacheAt + kCached * 8;
  static_assert(kDigits == kThreads);

  // Candidates by likelihood: the key of the score, then 24 bits that put the lower id above.
  static constexpr int kIdBits = 24, kKeyRounds = 4, kAllRounds = 7;  // 8 bits each
  LC_HD static uint64_t order_of(float score, int32_t id) {
    return uint64_t{order_key(score)} << kIdBits | static_cast<uint32_t>(kMaxVocab - 1 - id);
  }
  LC_HD static float score_of(uint64_t order) { return value_of_key(static_cast<uint32_t>(order >> kIdBits)); }
  LC_HD static int32_t id_of(uint64_t order) { return kMaxVocab - 1 - static_cast<int32_t>(order & (kMaxVocab - 1)); }
  LC_HD uint64_t read(const Part& part, int32_t i) const {
    const int32_t id = load_global(candidates_of(part) + i);
    return order_of(load_global(scores_of(part) + id), id);
  }
  LC_HD uint64_t candidate(uint32_t shared, const Part& part, int32_t i) const {
    return i < kCached ? load_shared<uint64_t>(shared + kCacheAt + i * 8) : read(part, i);
  }

  // The order of the candidate at which the sum of weights, the least likely first, passes the threshold. `before` is
  // the sum of what is less likely than all candidates. With fewer rounds than all, its first 8 * rounds bits.
  template <class Weight>
  LC_HD uint64_t find(uint32_t shared, const Part& part, int32_t count, int rounds, const Threshold& threshold,
                      uint64_t before, const Weight& weight) const {
    uint64_t found = 0;
    LC_UNROLL_BY(1) for (int round = 0; round < rounds; ++round) {
      const int shift = 8 * (kAllRounds - 1 - round);
      clear_bins(shared + kDigitsAt, kDigits);
      sync_threads();
      LC_UNROLL_BY(1) for (int32_t first = warp_idx() * 32; first < count; first += kThreads) {
        const int32_t i = first + lane_idx();
        const uint64_t order = i < count ? candidate(shared, part, i) : 0;
        const bool adds = i < count && order >> (shift + 8) == found >> (shift + 8);
        add_to_bins(shared + kDigitsAt, kDigits, static_cast<uint32_t>(order >> shift) % kDigits,
                    adds ? weight(order) : 0);
      }
      sync_threads();
      const uint64_t own = bin_at(shared + kDigitsAt, kDigits, static_cast<uint32_t>(thread_idx()));
      const uint64_t begin = before + sums_of(shared, own).before;
      if (!threshold.passed(begin) && threshold.passed(begin + own)) {
        store_shared(shared + kFoundAt, begin);
        store_shared(shared + kFoundAt + 8, static_cast<uint32_t>(thread_idx()));
      }
      sync_threads();
      before = load_shared<uint64_t>(shared + kFoundAt);
      found |= uint64_t{load_shared<uint32_t>(shared + kFoundAt + 8)} << shift;
    }
    return found;
  }

  // The last block: the draws of the candidates.
  LC_HD void draw_candidates(uint32_t shared, const Part& part, int32_t count, Draws& draws) const {
    const float largest = draws.largest, removed_share = load_global(&part.row->removed_share);
    const int32_t top_k = load_global(&part.row->top_k), thread = thread_idx();
    for (int32_t i = thread; i < count && i < kCached; i += kThreads)
      store_shared(shared + kCacheAt + i * 8, read(part, i));  // find() has a barrier before it reads them
    uint64_t least = 0, total = load_global(&part.state->total), below = load_global(&part.state->below);
    const auto mass = [&](uint64_t order) { return order >= least ? mass_of(expf(score_of(order) - largest)) : 0; };
    if (has_top_k(top_k, vocab)) {
      least = find(shared, part, count, kKeyRounds, top_k_of(static_cast<uint64_t>(count), top_k), 0,
                   [](uint64_t) { return uint64_t{1}; });
      uint64_t own = 0;
      for (int32_t i = thread; i < count; i += kThreads) own += mass(candidate(shared, part, i));
      total = sums_of(shared, own).total;
      below = 0;
    }
    if (removed_share > 0) least = find(shared, part, count, kAllRounds, top_p_of(total, removed_share), below, mass);
    for (int32_t i = thread; i < count; i += kThreads) {
      const uint64_t order = candidate(shared, part, i);
      if (order >= least) draws.add(score_of(order), id_of(order));
    }
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    Part part;
    if (!open(part) || load_global(&part.state->kind) == SamplerState::done) return;
    Draws draws(part);
    const int32_t kept_bins = load_global(&part.state->kept_bins), last_bin = load_global(&part.state->last_bin);
    const float* const from = scores_of(part) + part.begin;
    for_each(
        part.count, minus_infinity(), [&](int32_t i) { return load_global(from + i); },
        [&](int32_t i, float score) {
          const int32_t bin = score == minus_infinity() ? kBins + 1 : bin_of(draws.largest, score);
          if (bin < kept_bins) draws.add(score, part.begin + i);
          const bool is_candidate = bin >= kept_bins && bin <= last_bin;
          const uint32_t votes = ballot(is_candidate);
          if (votes == 0) return;
          uint32_t at = 0;
          if (lane_idx() == 0)
            at = atomic_add_global(&part.state->num_candidates, static_cast<uint32_t>(count_bits(votes)));
          at = shuffle(at, 0) + static_cast<uint32_t>(count_bits(votes & ((1u << lane_idx()) - 1)));
          if (is_candidate) store_global(candidates_of(part) + at, part.begin + i);
        });
    ScoredId* const parts = bests + int64_t{part.of} * blocks_per_row;
    const ScoredId own = best_of_block(shared, draws.best);
    if (thread_idx() == 0) store_global(parts + block_idx() % blocks_per_row, own);
    if (!is_last(shared, part)) return;

    draws.best = {0, -1, 0};
    for (int32_t i = thread_idx(); i < blocks_per_row; i += kThreads)
      draws.best = better(draws.best, load_global(parts + i));
    const int32_t count = static_cast<int32_t>(load_global(&part.state->num_candidates));
    if (count > 0) draw_candidates(shared, part, count, draws);
    const ScoredId best = best_of_block(shared, draws.best);
    if (thread_idx() > 0) return;
    store_global(token_ids + part.index, best.id);
    store_global(&part.state->num_candidates, 0u);
    store_global(&part.state->arrived, 0u);
  }
};

// More than one block fits a multiprocessor, and none needs an attribute.
static_assert(SamplerScores::kSharedBytes <= 48 << 10 && SamplerBins::kSharedBytes <= 48 << 10 &&
              SamplerDraws::kSharedBytes <= 48 << 10);

}  // namespace longcat::gpu
