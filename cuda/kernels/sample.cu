// Sampling and log-probabilities, with one block of 1,024 threads per row.
//
// Bound by passes over the row's logits (512 KB at a vocabulary of 131,072, in L2). A greedy row takes two passes, a
// row with top-k and top-p seven. Nothing is sorted. Three rounds of 2,048 bins over the bits of the value find the
// k-th largest value and the top-p threshold. The bins hold counts and fixed-point masses, which are integers, so
// atomics are exact. Atomics have 32 bits: shared memory has no native 64-bit ones, and compare-and-swap loops on a few
// bins would wait for each other. After the first round, a list holds the ids of its bin and of those above. Draws
// equal the CPU's: the same Philox numbers and f64 Gumbel scores.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/sampling.h"
#include "ops/philox.h"

namespace longcat {

namespace {

using gpu::Block;

constexpr int64_t kRowsAtOnce = 64;  // number of rows with scores and marks of their own
constexpr uint32_t kSeen = 0x80000000u;

LC_HD constexpr float removed() { return Block::minus_infinity(); }
LC_HD constexpr bool is_finite(float x) { return x - x == 0; }

struct Scored {
  double score;
  int32_t id;  // -1: none
};
struct FirstLargest {
  LC_HD Scored operator()(Scored a, Scored b) const {
    if (a.id < 0) return b;
    if (b.id < 0) return a;
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
  }
};

// The result of one pass over the logits: the lowest id of the largest, and flags of unusable values.
struct Survey {
  double score;
  int32_t id;  // -1: none
  uint32_t flags;
};

struct SampleRow {
  static constexpr int kThreads = 1024;
  static constexpr int kDigitBits = 11;  // per round; the last round has 10
  static constexpr int kBins = 1 << kDigitBits, kGroups = 64, kGroupBins = kBins / kGroups;
  static constexpr uint32_t kBad = 1, kOverflows = 2;

  // Shared memory of one round.
  struct Bins {
    uint32_t low[kBins], high[kBins];  // counts, or the halves of masses
    uint32_t used[kBins];              // 1: not empty
    uint64_t group_sums[kGroups];
    uint32_t group_used[kGroups];
    uint64_t before;  // count or mass beyond the selected bin
    uint32_t prefix;  // the digits of the threshold's key so far
  };
  static constexpr int64_t kSharedBytes = sizeof(Bins);

  // The remaining ids in ascending order: all, or those in a list.
  struct Ids {
    int64_t count;
    const uint32_t* list;  // null: 0, 1, 2, ...
    LC_HD int64_t operator[](int64_t i) const { return list ? list[i] : i; }
  };

  int32_t* token_ids;   // [rows]
  const float* logits;  // [num_logits, vocab]
  int64_t logits_stride, vocab;
  float* scores;                // [rows at once, vocab]
  uint32_t* marks;              // [rows at once, vocab]
  const unsigned char* packed;  // PackedSamplingRows, then their lists
  int64_t first_row;
  const int32_t* lane;          // [num_slots] i32
  const int32_t* block_tables;  // [num_sequences, max_blocks] i32
  int64_t block_table_stride;   // [elements]

  template <class T>
  LC_HD const T* list(const PackedList& l) const {
    return reinterpret_cast<const T*>(packed + l.offset);
  }

  LC_HD void operator()(const Block& block) const {
    const int64_t i = first_row + block.index;
    const PackedSamplingRow& row = reinterpret_cast<const PackedSamplingRow*>(packed)[i];
    float* l = scores + block.index * vocab;
    const float* from = logits + row.logits_row * logits_stride;
    block.for_each(vocab, [&](int64_t id) { l[id] = from[id]; });
    uint32_t* marked = marks + block.index * vocab;
    block.for_each(1, [&](int64_t) {
      for (int64_t b = 0; b < row.logit_bias.count; ++b) {
        const LogitBias& bias = list<LogitBias>(row.logit_bias)[b];
        l[bias.token_id] += bias.bias;
      }
    });
    penalise_repeats(block, row, l, marked);
    remove_forbidden(block, row, l, marked);
    const int32_t token_id = choose(block, row, l, marked);
    block.for_each(1, [&](int64_t) { token_ids[i] = token_id; });
  }

  // Temperature, removals by rank and likelihood, and the draw, as on the CPU (cpu/sample.cpp). Returns -1 when no id
  // can be chosen.
  LC_HD int32_t choose(const Block& block, const PackedSamplingRow& row, float* l, uint32_t* memory) const {
    const Survey survey = block.reduce(
        vocab, Survey{0, -1, 0},
        [&](int64_t id) {
          const float x = l[id];
          const uint32_t bad = x != x || x == -removed() ? kBad : 0;
          if (x == removed() || x != x) return Survey{0, -1, bad};
          const bool overflows = row.temperature != 0 && !is_finite(x / row.temperature);
          return Survey{x, static_cast<int32_t>(id), bad | (overflows ? kOverflows : 0)};
        },
        [](Survey a, Survey b) {
          const Scored best = FirstLargest{}(Scored{a.score, a.id}, Scored{b.score, b.id});
          return Survey{best.score, best.id, a.flags | b.flags};
        });
    if (survey.flags & kBad || survey.id < 0) return -1;
    if (row.temperature == 0 || survey.flags & kOverflows) return survey.id;  // so low that the result is greedy
    block.for_each(vocab, [&](int64_t id) {
      if (l[id] != removed()) l[id] /= row.temperature;
    });
    Ids ids{vocab, nullptr};
    if (row.top_k > 0 && row.top_k < vocab) ids = keep_top_k(block, l, ids, memory, row.top_k);
    if (row.top_p < 1) ids = keep_top_p(block, l, ids, memory, row.top_p);
    if (row.min_p > 0) keep_min_p(block, l, ids, row.min_p);
    return block
        .reduce(
            ids.count, Scored{0, -1},
            [&](int64_t i) {
              const int64_t id = ids[i];
              if (l[id] == removed()) return Scored{0, -1};
              const double uniform =
                  sampling_uniform(row.seed, static_cast<uint32_t>(id), static_cast<uint32_t>(row.position),
                                   static_cast<uint32_t>(row.sample_idx));
              return Scored{l[id] - log(-log(uniform)), static_cast<int32_t>(id)};
            },
            FirstLargest{})
        .id;
  }

  LC_HD int32_t history(const PackedSamplingRow& row, int64_t position) const {
    return lane[slot_of(block_tables + row.sequence * block_table_stride, position)];
  }

  // A mark counts an id's occurrences in the output, and has kSeen when the id occurs in prompt or output.
  LC_HD void penalise_repeats(const Block& block, const PackedSamplingRow& row, float* l, uint32_t* marked) const {
    const bool repetition = row.repetition_penalty != 1;
    if (!repetition && row.presence_penalty == 0 && row.frequency_penalty == 0) return;
    block.for_each(vocab, [&](int64_t id) { marked[id] = 0; });
    block.for_each(row.position + 1, [&](int64_t position) {
      const int32_t id = history(row, position);
      if (id < 0 || id >= vocab) return;
      Block::atomic_or(marked + id, kSeen);
      if (position >= row.num_prompt_tokens) Block::atomic_add(marked + id, 1u);
    });
    block.for_each(vocab, [&](int64_t id) {
      if (marked[id] == 0) return;
      if (repetition) l[id] = l[id] < 0 ? l[id] * row.repetition_penalty : l[id] / row.repetition_penalty;
      const uint32_t count = marked[id] & ~kSeen;
      if (count > 0) l[id] -= static_cast<float>(row.presence_penalty + row.frequency_penalty * count);
    });
  }

  LC_HD void remove_forbidden(const Block& block, const PackedSamplingRow& row, float* l, uint32_t* marked) const {
    const int32_t* ends = list<int32_t>(row.bad_word_ends);
    const int32_t* words = list<int32_t>(row.bad_word_ids);
    block.for_each(row.bad_word_ends.count, [&](int64_t w) {
      const int32_t begin = w == 0 ? 0 : ends[w - 1], prefix = ends[w] - begin - 1;
      if (prefix < 0 || prefix > row.position + 1) return;
      for (int32_t p = 0; p < prefix; ++p)
        if (history(row, row.position + 1 - prefix + p) != words[begin + p]) return;
      l[words[ends[w] - 1]] = removed();
    });
    const int32_t* banned = list<int32_t>(row.banned_ids);
    block.for_each(row.banned_ids.count, [&](int64_t b) { l[banned[b]] = removed(); });
    if (row.allowed_ids.count > 0) {
      const int32_t* allowed = list<int32_t>(row.allowed_ids);
      block.for_each(vocab, [&](int64_t id) { marked[id] = 0; });
      block.for_each(row.allowed_ids.count, [&](int64_t a) { marked[allowed[a]] = 1; });
      block.for_each(vocab, [&](int64_t id) {
        if (!marked[id]) l[id] = removed();
      });
    }
    if (row.mask.count > 0) {
      const uint32_t* mask = list<uint32_t>(row.mask);
      block.for_each(vocab, [&](int64_t id) {
        if (!(mask[id / 32] >> (id % 32) & 1)) l[id] = removed();
      });
    }
  }

  // The rounds take the digits of the keys, the highest first. shift_of: the lowest bit of a round's digit.
  static constexpr int kRounds = 3;
  LC_HD static int shift_of(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
  LC_HD static uint32_t digit_of(uint32_t key, int round) {
    return key >> shift_of(round) & (round == 2 ? 0x3ff : 0x7ff);
  }
  LC_HD static bool has_prefix(uint32_t key, uint32_t prefix, int round) {
    return round == 0 || key >> shift_of(round - 1) == prefix >> shift_of(round - 1);
  }

  LC_HD static void clear(const Block& block, Bins& bins) {
    block.for_each(kBins, [&](int64_t b) { bins.low[b] = bins.high[b] = bins.used[b] = 0; });
  }
  LC_HD static uint64_t sum_of(const Bins& bins, int64_t b) {
    return static_cast<uint64_t>(bins.high[b]) << 32 | bins.low[b];
  }
  LC_HD static void sum_groups(const Block& block, Bins& bins) {
    block.for_each(kGroups, [&](int64_t g) {
      uint64_t sum = 0;
      uint32_t used = 0;
      for (int64_t i = 0; i < kGroupBins; ++i) {
        const int64_t b = g * kGroupBins + (i + g) % kGroupBins;  // a different bank per thread
        sum += sum_of(bins, b);
        used |= bins.used[b];
      }
      bins.group_sums[g] = sum;
      bins.group_used[g] = used;
    });
  }

  // The ids after the first round: those whose first digit is at least that of `prefix`. An existing list is kept,
  // because later rounds have few ids anyway.
  LC_HD Ids ids_from(const Block& block, const float* l, Ids ids, uint32_t* memory, uint32_t prefix) const {
    if (ids.list) return ids;
    const uint32_t digit = digit_of(prefix, 0);
    const int64_t count = block.compact(
        ids.count, [&](int64_t id) { return digit_of(order_key(l[id]), 0) >= digit; },
        [&](int64_t id, int64_t rank) { memory[rank] = static_cast<uint32_t>(id); });
    return {count, memory};
  }

  // Removes logits below the k-th largest. Ties with it stay.
  LC_HD Ids keep_top_k(const Block& block, float* l, Ids ids, uint32_t* memory, int64_t k) const {
    Bins& bins = *block.shared<Bins>();
    block.for_each(1, [&](int64_t) {
      bins.before = 0;
      bins.prefix = 0;
    });
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t prefix = bins.prefix;
      clear(block, bins);
      block.for_each(ids.count, [&](int64_t i) {
        const uint32_t key = order_key(l[ids[i]]);
        if (has_prefix(key, prefix, round)) Block::atomic_add(bins.low + digit_of(key, round), 1u);
      });
      sum_groups(block, bins);
      block.for_each(1, [&](int64_t) {
        const uint64_t wanted = static_cast<uint64_t>(k);
        int64_t g = kGroups - 1;
        while (bins.before + bins.group_sums[g] < wanted) bins.before += bins.group_sums[g--];
        int64_t digit = (g + 1) * kGroupBins - 1;
        while (bins.before + bins.low[digit] < wanted) bins.before += bins.low[digit--];
        bins.prefix |= static_cast<uint32_t>(digit) << shift_of(round);
      });
      if (round == 0) ids = ids_from(block, l, ids, memory, bins.prefix);
    }
    const uint32_t threshold = bins.prefix;
    block.for_each(ids.count, [&](int64_t i) {
      if (order_key(l[ids[i]]) < threshold) l[ids[i]] = removed();
    });
    return ids;
  }

  // Removes the least likely survivors while their cumulative share is <= 1 - top_p. Among equals the higher id is
  // removed first. The most likely id stays.
  LC_HD Ids keep_top_p(const Block& block, float* l, Ids ids, uint32_t* memory, double top_p) const {
    Bins& bins = *block.shared<Bins>();
    const float max = block.max(ids.count, [&](int64_t i) { return l[ids[i]]; });
    const uint64_t total = block.sum<uint64_t>(ids.count, [&](int64_t i) { return mass_of(expf(l[ids[i]] - max)); });
    const float limit = static_cast<float>(1 - top_p);
    const auto beyond = [&](uint64_t mass) {
      return static_cast<float>(static_cast<double>(mass) / static_cast<double>(total)) > limit;
    };
    block.for_each(1, [&](int64_t) {
      bins.before = 0;
      bins.prefix = 0;
    });
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t prefix = bins.prefix;
      clear(block, bins);
      block.for_each(ids.count, [&](int64_t i) {
        const float x = l[ids[i]];
        const uint32_t key = order_key(x), digit = digit_of(key, round);
        if (x == removed() || !has_prefix(key, prefix, round)) return;
        bins.used[digit] = 1;  // even with mass 0, so that a bin of negligible ids is not empty
        Block::atomic_add(bins.low + digit, bins.high + digit, mass_of(expf(x - max)));
      });
      sum_groups(block, bins);
      block.for_each(1, [&](int64_t) {  // with top_p = 0 no bin is beyond the limit: the last non-empty one
        int64_t group = 0;
        uint64_t before = bins.before, before_group = before;
        for (int64_t g = 0; g < kGroups; ++g) {
          if (!bins.group_used[g]) continue;
          group = g;
          before_group = before;
          before += bins.group_sums[g];
          if (beyond(before)) break;
        }
        int64_t digit = 0;
        before = before_group;
        for (int64_t b = group * kGroupBins; b < (group + 1) * kGroupBins; ++b) {
          if (!bins.used[b]) continue;
          digit = b;
          bins.before = before;
          before += sum_of(bins, b);
          if (beyond(before)) break;
        }
        bins.prefix |= static_cast<uint32_t>(digit) << shift_of(round);
      });
      if (round == 0) ids = ids_from(block, l, ids, memory, bins.prefix);
    }
    const uint32_t threshold = bins.prefix;
    const uint64_t below = bins.before;
    const float value =
        block.max(ids.count, [&](int64_t i) { return order_key(l[ids[i]]) == threshold ? l[ids[i]] : removed(); });
    const uint64_t mass = mass_of(expf(value - max));
    const int64_t equals =
        block.sum<int64_t>(ids.count, [&](int64_t i) { return order_key(l[ids[i]]) == threshold ? 1 : 0; });
    int64_t going = 0;  // number of equals to remove
    const int64_t most = order_key(max) == threshold ? equals - 1 : equals;
    while (going < most && !beyond(below + static_cast<uint64_t>(going + 1) * mass)) ++going;
    block.for_each(ids.count, [&](int64_t i) {
      if (order_key(l[ids[i]]) < threshold) l[ids[i]] = removed();
    });
    block.compact(
        ids.count, [&](int64_t i) { return order_key(l[ids[i]]) == threshold; },
        [&](int64_t i, int64_t rank) {
          if (rank >= equals - going) l[ids[i]] = removed();
        });
    return ids;
  }

  // Removes ids less likely than min_p times the most likely id.
  LC_HD void keep_min_p(const Block& block, float* l, Ids ids, double min_p) const {
    const float max = block.max(ids.count, [&](int64_t i) { return l[ids[i]]; });
    const float total = block.sum<float>(ids.count, [&](int64_t i) { return expf(l[ids[i]] - max); });
    const float limit = static_cast<float>(min_p) * (1 / total);
    block.for_each(ids.count, [&](int64_t i) {
      const int64_t id = ids[i];
      if (expf(l[id] - max) / total < limit && l[id] != max) l[id] = removed();
    });
  }
};

struct TokenLogprobsRow {
  static constexpr int kThreads = 1024;
  float* logprobs;           // [num_rows, 1 + top]
  int32_t* ids;              // [num_rows, 1 + top]
  int32_t* ranks;            // [num_rows]
  const float* logits;       // [num_rows, vocab]
  const int32_t* token_ids;  // [num_rows]
  int64_t logits_stride, vocab, top;

  LC_HD void operator()(const Block& block) const {
    const int64_t i = block.index;
    const float* row = logits + i * logits_stride;
    const int32_t chosen = token_ids[i];
    const float max = block.max(vocab, [&](int64_t id) { return row[id]; });
    const double total = block.sum<double>(vocab, [&](int64_t id) { return exp(static_cast<double>(row[id]) - max); });
    const auto logprob = [&](int32_t id) { return static_cast<float>(row[id] - max - log(total)); };
    const int32_t likelier = block.sum<int32_t>(vocab, [&](int64_t id) { return row[id] > row[chosen] ? 1 : 0; });
    block.for_each(1, [&](int64_t) {
      ids[i * (1 + top)] = chosen;
      logprobs[i * (1 + top)] = logprob(chosen);
      ranks[i] = 1 + likelier;
    });
    Scored last{0, -1};
    for (int64_t k = 0; k < top; ++k) {
      last = block.reduce(
          vocab, Scored{0, -1},
          [&](int64_t id) {
            const Scored candidate{row[id] == row[id] ? row[id] : removed(), static_cast<int32_t>(id)};
            const bool later = last.id < 0 || candidate.score < last.score ||
                               (candidate.score == last.score && candidate.id > last.id);
            return later ? candidate : Scored{0, -1};
          },
          FirstLargest{});
      block.for_each(1, [&](int64_t) {
        ids[i * (1 + top) + k + 1] = last.id;
        logprobs[i * (1 + top) + k + 1] = logprob(last.id);
      });
    }
  }
};

}  // namespace

void pack_sampling_rows(std::vector<std::byte>& packed, std::span<const SamplingRow> rows) {
  packed.clear();
  packed.resize(rows.size() * sizeof(PackedSamplingRow));
  const auto append = [&](const auto& values) {
    using T = std::remove_cvref_t<decltype(values[0])>;
    packed.resize((packed.size() + 15) / 16 * 16);
    const PackedList list{static_cast<int64_t>(packed.size()), static_cast<int64_t>(values.size())};
    packed.resize(packed.size() + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(packed.data() + list.offset, values.data(), values.size() * sizeof(T));
    return list;
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplingRow& row = rows[i];
    PackedSamplingRow p{.top_p = row.top_p,
                        .min_p = row.min_p,
                        .presence_penalty = row.presence_penalty,
                        .frequency_penalty = row.frequency_penalty,
                        .seed = row.seed,
                        .temperature = static_cast<float>(row.temperature),
                        .repetition_penalty = static_cast<float>(row.repetition_penalty),
                        .top_k = row.top_k,
                        .sample_idx = row.sample_idx,
                        .logits_row = row.logits_row,
                        .sequence = row.sequence,
                        .position = row.position,
                        .num_prompt_tokens = row.num_prompt_tokens,
                        .logit_bias = {},
                        .bad_word_ends = {},
                        .bad_word_ids = {},
                        .banned_ids = {},
                        .allowed_ids = {},
                        .mask = {}};
    p.logit_bias = append(row.logit_bias);
    p.banned_ids = append(row.banned_ids);
    p.allowed_ids = append(row.allowed_ids);
    p.mask = append(row.mask);
    if (!row.bad_words.empty()) {
      thread_local std::vector<int32_t> ends, ids;  // these grow once
      ends.clear();
      ids.clear();
      for (const std::vector<int32_t>& word : row.bad_words) {
        ids.insert(ids.end(), word.begin(), word.end());
        ends.push_back(static_cast<int32_t>(ids.size()));
      }
      p.bad_word_ends = append(ends);
      p.bad_word_ids = append(ids);
    }
    std::memcpy(packed.data() + i * sizeof(PackedSamplingRow), &p, sizeof(p));
  }
}

void CudaOps::sample(Tensor token_ids, Tensor logits, std::span<const SamplingRow> rows, Tensor lane,
                     Tensor block_tables) {
  const int64_t vocab = logits.size(1), num_rows = static_cast<int64_t>(rows.size());
  pack_sampling_rows(packed_rows_, rows);
  grow(sampling_rows_, static_cast<int64_t>(packed_rows_.size()));
  grow(sampling_scores_, kRowsAtOnce * vocab * 4);
  grow(sampling_marks_, kRowsAtOnce * vocab * 4);
  device_->upload(sampling_rows_.data(), packed_rows_.data(), static_cast<int64_t>(packed_rows_.size()));
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce)
    gpu::launch(*device_, std::min(kRowsAtOnce, num_rows - first), SampleRow::kSharedBytes,
                SampleRow{.token_ids = token_ids.data<int32_t>(),
                          .logits = logits.data<float>(),
                          .logits_stride = logits.stride(0),
                          .vocab = vocab,
                          .scores = static_cast<float*>(sampling_scores_.data()),
                          .marks = static_cast<uint32_t*>(sampling_marks_.data()),
                          .packed = static_cast<const unsigned char*>(sampling_rows_.data()),
                          .first_row = first,
                          .lane = lane.data<int32_t>(),
                          .block_tables = block_tables.data<int32_t>(),
                          .block_table_stride = block_tables.stride(0)});
}

void CudaOps::token_logprobs(Tensor logprobs, Tensor ids, Tensor ranks, Tensor logits, Tensor token_ids) {
  gpu::launch(*device_, logits.size(0), 0,
              TokenLogprobsRow{.logprobs = logprobs.data<float>(),
                               .ids = ids.data<int32_t>(),
                               .ranks = ranks.data<int32_t>(),
                               .logits = logits.data<float>(),
                               .token_ids = token_ids.data<int32_t>(),
                               .logits_stride = logits.stride(0),
                               .vocab = logits.size(1),
                               .top = ids.size(1) - 1});
}

}  // namespace longcat
