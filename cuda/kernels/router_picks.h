// The router after its linear layer (two bf16 planes): the picks of each token, and the experts' lists of rows.
//
// One block a token. Its first warp has 12 of the 384 outputs in each lane: softmax, the 12 outputs with the largest
// probability + bias, their weights. Sums are in the order of moe.cu's RoutePicks. Each expert has a mask of its
// tokens, 64 bits. The last block to arrive makes of the masks the permuted order, sorted by expert and token, and the
// list of experts with rows. Masks and counter are zero before and after.
#pragma once

#include "cuda/kernels/few_token_experts.h"

namespace longcat::gpu {

struct RouterPicks {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kOutputs = 384, kEach = kOutputs / 32, kTopk = 12;
  static constexpr int kMaxExperts = kThreads;
  static constexpr int64_t kMaxBlocks = 64;  // tokens: the bits of a mask

  // Layout of the shared memory [bytes].
  static constexpr uint32_t kPicksAt = 0;                             // [kTopk] i32
  static constexpr uint32_t kWeightsAt = kPicksAt + kTopk * 4;        // [kTopk] f32
  static constexpr uint32_t kLastAt = kWeightsAt + kTopk * 4;         // whether this block is the last
  static constexpr uint32_t kTotalsAt = kLastAt + 16;                 // [kWarps] of the scan
  static constexpr uint32_t kOffsetsAt = kTotalsAt + kWarps * 4;      // [kMaxExperts] first row
  static constexpr uint32_t kMasksAt = kOffsetsAt + kMaxExperts * 4;  // [kMaxExperts] 64 bits
  static constexpr uint32_t kSharedBytes = kMasksAt + kMaxExperts * 8;

  const float* scores;                // [T, kOutputs]
  const float* bias;                  // [kOutputs]
  const int32_t* num_real_tokens;     // [1]: the tokens behind have no picks
  int32_t* expert_idx;                // [T, kTopk], ascending
  float* expert_weights;              // [T, kTopk]
  float* identity_weight;             // [T]: sum of the weights of identity experts
  int32_t* permuted_rows;             // [T, kTopk]: the pick's row; -1 where its expert is not here
  int32_t* permuted_tokens;           // [T * kTopk]: the token of each row
  int32_t* expert_offsets;            // [num_experts + 1]: first row of each
  ExpertRows* items;                  // [num_experts]: those with rows
  int32_t* num_items;                 // [1]
  unsigned long long* masks;          // [num_experts]
  uint32_t* finished;                 // [1]: blocks
  int32_t n_routed_experts;           // outputs from here on are identity experts
  int32_t first_expert, num_experts;  // here, at most kMaxExperts; all are routed experts
  float scaling_factor;

  // Floats in ascending order of keys; NaN is below all.
  LC_HD static uint32_t key_of(float value) {
    if (!(value == value)) return 0;
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }

  // The sum over a warp's outputs, in the order of 256 threads.
  LC_HD static float sum_of(const float (&values)[kEach]) {
    float parts[8];
    LC_UNROLL for (int i = 0; i < 8; ++i) parts[i] =
        i + 8 < kEach ? add_rn(values[i], values[(i + 8) % kEach]) : values[i];
    LC_UNROLL for (int width = 4; width > 0; width /= 2) LC_UNROLL for (int i = 0; i < width; ++i) parts[i] =
        add_rn(parts[i], parts[i + width]);
    LC_UNROLL for (int mask = 16; mask > 0; mask /= 2) parts[0] = add_rn(parts[0], shuffle_xor(parts[0], mask));
    return parts[0];
  }

  LC_HD void no_picks(int64_t token) const {
    const int lane = lane_idx();
    if (lane < kTopk) {
      store_global(expert_idx + token * kTopk + lane, n_routed_experts);
      store_global(expert_weights + token * kTopk + lane, 0.0f);
      store_global(permuted_rows + token * kTopk + lane, -1);
    }
    if (lane == 0) store_global(identity_weight + token, 0.0f);
  }

  // One warp. Lane l has the outputs l + 32 i.
  LC_HD void pick(uint32_t shared, int64_t token) const {
    const int lane = lane_idx();
    float p[kEach], largest = minus_infinity();
    LC_UNROLL for (int i = 0; i < kEach; ++i) {
      p[i] = load_global(scores + token * kOutputs + i * 32 + lane);
      largest = p[i] > largest ? p[i] : largest;
    }
    LC_UNROLL for (int mask = 16; mask > 0; mask /= 2) {
      const float other = shuffle_xor(largest, mask);
      largest = other > largest ? other : largest;
    }
    LC_UNROLL for (int i = 0; i < kEach; ++i) p[i] = expf(p[i] - largest);
    const float sum = sum_of(p);
    uint32_t keys[kEach];
    LC_UNROLL for (int i = 0; i < kEach; ++i) {
      p[i] = p[i] / sum;
      keys[i] = key_of(add_rn(p[i], load_global(bias + i * 32 + lane)));
    }

    uint32_t picked = 0;  // bit i: output l + 32 i
    LC_UNROLL_BY(1) for (int n = 0; n < kTopk; ++n) {
      uint32_t best = 0, best_output = kOutputs;
      LC_UNROLL for (int i = 0; i < kEach; ++i) {
        const bool better = !(picked >> i & 1) && (best_output == kOutputs || keys[i] > best);
        best = better ? keys[i] : best;
        best_output = better ? i * 32 + lane : best_output;
      }
      const uint32_t most = warp_max(best);
      const uint32_t first = kOutputs - warp_max(best == most ? kOutputs - best_output : 0);  // ties: the lowest
      picked |= uint32_t{first % 32 == static_cast<uint32_t>(lane)} << first / 32;
    }

    int rank = 0;
    LC_UNROLL for (int i = 0; i < kEach; ++i) {
      const uint32_t votes = ballot(picked >> i & 1);
      if (picked >> i & 1) {
        const int at = rank + count_bits(votes & ((1u << lane) - 1)), output = i * 32 + lane;
        const float weight = mul_rn(p[i], scaling_factor);
        store_global(expert_idx + token * kTopk + at, output);
        store_global(expert_weights + token * kTopk + at, weight);
        store_shared(shared + kPicksAt + at * 4, output);
        store_shared(shared + kWeightsAt + at * 4, weight);
        const int expert = output - first_expert;
        if (expert >= 0 && expert < num_experts) {
          atomic_add_global(masks + expert, 1ull << token);
        } else {
          store_global(permuted_rows + token * kTopk + at, -1);
        }
      }
      rank += count_bits(votes);
    }
    sync_warp();
    if (lane == 0) {
      float identity = 0;
      for (int j = 0; j < kTopk; ++j)
        if (load_shared<int32_t>(shared + kPicksAt + j * 4) >= n_routed_experts)
          identity = add_rn(identity, load_shared<float>(shared + kWeightsAt + j * 4));
      store_global(identity_weight + token, identity);
    }
  }

  // The last block: thread e has expert e.
  LC_HD void make_lists(uint32_t shared) const {
    const int expert = thread_idx(), lane = lane_idx();
    const unsigned long long mask = expert < num_experts ? load_global(masks + expert) : 0;
    const uint32_t rows =
        static_cast<uint32_t>(count_bits(static_cast<uint32_t>(mask)) + count_bits(static_cast<uint32_t>(mask >> 32)));
    // Rows in the lower half of a word, experts that have some in the upper. First the sum to each lane, then to each
    // warp.
    const uint32_t own = rows | uint32_t{rows > 0} << 16;
    uint32_t sum = own;
    LC_UNROLL for (int delta = 1; delta < 32; delta *= 2) {
      const uint32_t before = shuffle_up(sum, delta);
      sum += lane >= delta ? before : 0;
    }
    if (lane == 31) store_shared(shared + kTotalsAt + warp_idx() * 4, sum);
    store_shared(shared + kMasksAt + expert * 8, mask);
    sync_threads();
    uint32_t before = sum - own;
    for (int warp = 0; warp < warp_idx(); ++warp) before += load_shared<uint32_t>(shared + kTotalsAt + warp * 4);
    const int32_t first = static_cast<int32_t>(before & 0xffff), item = static_cast<int32_t>(before >> 16);
    const int32_t end = first + static_cast<int32_t>(rows);
    store_shared(shared + kOffsetsAt + expert * 4, first);
    if (expert < num_experts) {
      store_global(expert_offsets + expert, first);
      if (rows > 0) store_global(items + item, ExpertRows{expert, first, end});
      if (expert == num_experts - 1) {
        store_global(expert_offsets + num_experts, end);
        store_global(num_items, item + (rows > 0));
      }
      store_global(masks + expert, 0ull);
    }
    if (expert == 0) store_global(finished, 0u);
    sync_threads();

    const int32_t picks = load_global(num_real_tokens) * kTopk;
    for (int32_t i = thread_idx(); i < picks; i += kThreads) {
      const int32_t of = load_global(expert_idx + i) - first_expert, token = i / kTopk;
      if (of < 0 || of >= num_experts) continue;
      const auto lower = load_shared<unsigned long long>(shared + kMasksAt + of * 8) & ((1ull << token) - 1);
      const int32_t row = load_shared<int32_t>(shared + kOffsetsAt + of * 4) +
                          count_bits(static_cast<uint32_t>(lower)) + count_bits(static_cast<uint32_t>(lower >> 32));
      store_global(permuted_rows + i, row);
      store_global(permuted_tokens + row, token);
    }
  }

  LC_HD void operator()(uint32_t shared) const {
    launch_next_grid();
    wait_for_prior_grid();
    if (warp_idx() == 0) {
      if (block_idx() < load_global(num_real_tokens)) {
        pick(shared, block_idx());
      } else {
        no_picks(block_idx());
      }
    }
    // pick()'s sync_warp has ordered the picks before this.
    if (thread_idx() == 0) store_shared(shared + kLastAt, arrive(finished, 1u));
    sync_threads();
    if (load_shared<uint32_t>(shared + kLastAt) == num_blocks() - 1) make_lists(shared);
  }
};

}  // namespace longcat::gpu
