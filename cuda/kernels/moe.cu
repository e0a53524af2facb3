// Router, permutation, experts and combine of the shortcut MoE.
//
// Scores are bound by the 4.7 MB of weights per layer (384 x 3,072 f32). With bf16 planes (CudaOps::prepare_router),
// one kernel on tensor cores computes them for any number of tokens, so that a token's picks depend on nothing else.
// Without, many loads must be in flight at once: 15 loads of 16 bytes per lane. One token takes 24 blocks of 16
// outputs; many tokens take 12 blocks of 32 outputs per 8 tokens. Picks and permutation of at most 64 tokens, 384
// outputs and 12 picks: RouterPicks. Others, with the same bits:
// - Picks: one warp per token. Softmax, bias, top-12 by repeated argmax, and weights are all in shared memory (12 bytes
//   per router output).
// - Permutation: one block per expert reads all picks (T * 12 ids, from L2), so rows are in token order without
// atomics. Experts of at most 64 tokens gather their inputs themselves, by a list of the experts that have rows.
// Combine: one block per token gathers its experts' rows in ascending expert id.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/gemm/few_tokens.h"
#include "cuda/gemm/fp8_linear.h"
#include "cuda/gemm/packed.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/elementwise.h"
#include "cuda/kernels/wide.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::View;

struct Candidate {
  float key;
  int32_t id;  // -1: none
};

// scores[t, e] = x[t] . classifier[e] in f32, with the same bits for every number of tokens.
template <class X, int kRows, int kTokens, int kAhead>
struct RouteScores {
  static constexpr int kThreads = 256;
  static constexpr int64_t kOutputs = kThreads / 32 * kRows;  // outputs per block
  float* scores;                                              // [T, num_outputs]
  const X* x;                                                 // [T, dim], x_stride [elements] between rows
  const float* classifier;                                    // [num_outputs, dim]
  const int32_t* num_real_tokens;                             // [1] i32
  int64_t num_tokens, x_stride, num_outputs, dim;
  bool wide;  // rows can be read 16 bytes at a time

  LC_HD void operator()(const Block& block) const {
    const int64_t groups = (num_outputs + kOutputs - 1) / kOutputs;
    const int64_t first = block.index % groups * kOutputs, first_token = block.index / groups * kTokens;
    if (first_token >= *num_real_tokens) return;
    const X* rows[kTokens];
    for (int i = 0; i < kTokens; ++i)
      rows[i] = x + (first_token + i < num_tokens ? first_token + i : num_tokens - 1) * x_stride;
    gpu::row_products<kRows, kTokens, kAhead>(block, classifier + first * dim,
                                              num_outputs - first < kOutputs ? num_outputs - first : kOutputs, rows,
                                              dim, wide, [&](int64_t e, int64_t i, float sum) {
                                                if (first_token + i < num_tokens)
                                                  scores[(first_token + i) * num_outputs + first + e] = sum;
                                              });
  }
};

// Selects a token's picks by its scores.
struct RoutePicks {
  static constexpr int kThreads = 32;                            // one warp, whose barriers cost nothing
  int32_t* expert_idx;                                           // [T, topk]
  float* expert_weights;                                         // [T, topk] f32
  float* identity_weight;                                        // [T] f32
  int32_t* permuted_rows;                                        // [T, topk]; -1 for experts that are not here
  const float* scores;                                           // [T, n] f32
  const float* bias;                                             // [n] f32
  const int32_t* num_real_tokens;                                // [1] i32
  int64_t topk, n, n_routed_experts, first_expert, num_experts;  // n: number of router outputs
  float scaling_factor;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    int32_t* picks = expert_idx + t * topk;
    float* weights = expert_weights + t * topk;
    if (t >= *num_real_tokens) {
      block.for_each(topk, [&](int64_t j) {
        picks[j] = static_cast<int32_t>(n_routed_experts);
        weights[j] = 0;
        permuted_rows[t * topk + j] = -1;
        if (j == 0) identity_weight[t] = 0;
      });
      return;
    }
    float* g = block.shared<float>();                         // [n]
    float* keys = g + n;                                      // [n]
    int32_t* picked = reinterpret_cast<int32_t*>(g + 2 * n);  // [n]
    float* found = g + 3 * n;                                 // [1]
    block.for_each(n, [&](int64_t e) { g[e] = scores[t * n + e]; });
    constexpr int kOrder = 256;  // the sum's order is that of this number of threads
    block.reduce_rows<kOrder>(
        1, n, Block::minus_infinity(), [&](int64_t, int64_t e) { return g[e]; },
        [](float a, float b) { return a > b ? a : b; }, [&](int64_t, float max) { *found = max; });
    const float max = *found;
    block.for_each(n, [&](int64_t e) { g[e] = expf(g[e] - max); });
    block.reduce_rows<kOrder>(
        1, n, 0.0f, [&](int64_t, int64_t e) { return g[e]; }, [](float a, float b) { return a + b; },
        [&](int64_t, float sum) { *found = sum; });
    const float sum = *found;
    block.for_each(n, [&](int64_t e) {
      g[e] /= sum;
      keys[e] = g[e] + bias[e];
      picked[e] = 0;
    });
    for (int64_t j = 0; j < topk; ++j) {
      const Candidate best = block.reduce(
          n, Candidate{0, -1},
          [&](int64_t e) { return picked[e] ? Candidate{0, -1} : Candidate{keys[e], static_cast<int32_t>(e)}; },
          [](Candidate a, Candidate b) {  // ties go to the lowest id; NaN never wins
            if (a.id < 0) return b;
            if (b.id < 0) return a;
            return b.key > a.key || (b.key == a.key && b.id < a.id) ? b : a;
          });
      block.for_each(1, [&](int64_t) { picked[best.id] = 1; });
    }
    block.compact(
        n, [&](int64_t e) { return picked[e] != 0; }, [&](int64_t e, int64_t rank) {  // ascending id
          picks[rank] = static_cast<int32_t>(e);
          weights[rank] = g[e] * scaling_factor;
          if (e < first_expert || e >= first_expert + num_experts) permuted_rows[t * topk + rank] = -1;
        });
    block.for_each(1, [&](int64_t) {
      float identity = 0;
      for (int64_t j = 0; j < topk; ++j)
        if (picks[j] >= n_routed_experts) identity += weights[j];
      identity_weight[t] = identity;
    });
  }
};

template <class X, int kRows, int kTokens, int kAhead>
void route_scores(GpuDevice& device, Tensor scores, Tensor x, const Weight& classifier, Tensor num_real_tokens) {
  using Kernel = RouteScores<X, kRows, kTokens, kAhead>;
  const int64_t num_tokens = x.size(0), outputs = classifier.out_features, dim = classifier.in_features;
  const int64_t groups = (outputs + Kernel::kOutputs - 1) / Kernel::kOutputs;
  gpu::launch(device, (num_tokens + kTokens - 1) / kTokens * groups, 0,
              Kernel{.scores = scores.data<float>(),
                     .x = x.data<X>(),
                     .classifier = static_cast<const float*>(classifier.data),
                     .num_real_tokens = num_real_tokens.data<int32_t>(),
                     .num_tokens = num_tokens,
                     .x_stride = x.stride(0),
                     .num_outputs = outputs,
                     .dim = dim,
                     .wide = dim % gpu::kWide == 0 && gpu::is_wide(x.raw(), x.stride(0), size_of(x.dtype())) &&
                             gpu::is_wide(classifier.data, dim, 4)});
}

// With few tokens: many blocks, each with few weights. With more: each loaded weight serves 8 tokens.
template <class X>
void route_scores(GpuDevice& device, Tensor scores, Tensor x, const Weight& classifier, Tensor num_real_tokens) {
  if (x.size(0) <= 8) return route_scores<X, 2, 1, 3>(device, scores, x, classifier, num_real_tokens);
  route_scores<X, 4, 8, 1>(device, scores, x, classifier, num_real_tokens);
}

int32_t* num_items_of(Tensor expert_list) { return expert_list.data<int32_t>(); }
gpu::ExpertRows* items_of(Tensor expert_list) {
  return reinterpret_cast<gpu::ExpertRows*>(expert_list.data<int32_t>() + 1);
}

// Block i places the rows of expert first_expert + i after those of the experts before it. One more block writes the
// end of the list.
struct Permute {
  static constexpr int kThreads = 256;
  const int32_t* expert_idx;  // [T, topk]
  int32_t* expert_offsets;    // [num_experts + 1]
  int32_t* permuted_tokens;   // [T * topk]
  int32_t* permuted_rows;     // [T, topk]
  int64_t num_picks, topk;

  LC_HD void operator()(const Block& block) const {
    const int64_t expert = first_expert + block.index;
    const int32_t first = block.sum<int32_t>(
        num_picks, [&](int64_t i) { return first_expert <= expert_idx[i] && expert_idx[i] < expert ? 1 : 0; });
    block.for_each(1, [&](int64_t) { expert_offsets[block.index] = first; });
    if (block.index == num_experts) return;
    block.compact(
        num_picks, [&](int64_t i) { return expert_idx[i] == expert; },
        [&](int64_t i, int64_t rank) {
          const int32_t row = first + static_cast<int32_t>(rank);
          permuted_rows[i] = row;
          permuted_tokens[row] = static_cast<int32_t>(i / topk);
        });
  }
  int64_t first_expert, num_experts;
};

// The list of Routing::expert_list. One block.
struct ListExperts {
  static constexpr int kThreads = 256;
  const int32_t* expert_offsets;  // [num_experts + 1]
  int32_t* num_items;             // [1]
  gpu::ExpertRows* items;         // [num_experts]
  int64_t num_experts;

  LC_HD void operator()(const Block& block) const {
    const int64_t count = block.compact(
        num_experts, [&](int64_t e) { return expert_offsets[e] < expert_offsets[e + 1]; },
        [&](int64_t e, int64_t rank) {
          items[rank] = {static_cast<int32_t>(e), expert_offsets[e], expert_offsets[e + 1]};
        });
    block.for_each(1, [&](int64_t) { *num_items = static_cast<int32_t>(count); });
  }
};

// The same in slices of at most kPackedTokens rows of an expert. One block.
struct ListSlices {
  static constexpr int kThreads = 256;
  static constexpr int32_t kRows = gpu::kPackedTokens;
  const int32_t* expert_offsets;  // [num_experts + 1]
  int32_t* num_items;             // [1]
  gpu::ExpertRows* items;
  int64_t num_experts;

  LC_HD int32_t num_slices(int64_t e) const { return (expert_offsets[e + 1] - expert_offsets[e] + kRows - 1) / kRows; }
  LC_HD void operator()(const Block& block) const {
    block.for_each(num_experts + 1, [&](int64_t e) {
      int32_t first = 0;
      for (int64_t before = 0; before < e; ++before) first += num_slices(before);
      if (e == num_experts) {
        *num_items = first;
        return;
      }
      for (int32_t begin = expert_offsets[e]; begin < expert_offsets[e + 1]; begin += kRows) {
        const int32_t end = begin + kRows < expert_offsets[e + 1] ? begin + kRows : expert_offsets[e + 1];
        items[first++] = {static_cast<int32_t>(e), begin, end};
      }
    });
  }
};

struct Combine {
  static constexpr int kThreads = 256;
  View out, expert_out;          // [T, dim]; [T * topk, dim]
  const float* expert_weights;   // [T, topk] f32
  const int32_t* permuted_rows;  // [T, topk]
  int64_t topk, dim;
  bool wide;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    gpu::for_each_values(block, dim, wide, [&](auto count, int64_t k) {
      gpu::Values<count()> sums{};
      LC_UNROLL_BY(4) for (int64_t j = 0; j < topk; ++j) {
        const int64_t row = permuted_rows[t * topk + j];
        if (row < 0) continue;
        const auto values = gpu::get_values<count()>(expert_out, row * expert_out.stride0 + k);
        LC_UNROLL for (int i = 0; i < count(); ++i) sums.v[i] += expert_weights[t * topk + j] * values.v[i];
      }
      gpu::set_values(out, t * out.stride0 + k, sums);
    });
  }
};

}  // namespace

void CudaOps::moe_route(Routing& routing, Tensor scratch, Tensor x, const Weight& classifier, Tensor bias,
                        Tensor num_real_tokens, int64_t n_routed_experts, int64_t first_expert, float scaling_factor) {
  const int64_t num_tokens = x.size(0), topk = routing.expert_idx.size(1);
  const int64_t num_experts = routing.expert_offsets.size(0) - 1;
  LC_CHECK(topk <= classifier.out_features && scratch.size(1) == classifier.out_features && scratch.is_contiguous());
  LC_CHECK(classifier.in_features == x.size(1));
  routing.first_expert = first_expert;
  const bool planes = classifier.format == WeightFormat::bf16_planes;
  LC_CHECK(planes || classifier.format == WeightFormat::f32, name_of(classifier.format));
  if (planes) {
    gpu::router_scores(*device_, scratch, x, classifier);
  } else if (x.dtype() == DType::bf16) {
    route_scores<bf16>(*device_, scratch, x, classifier, num_real_tokens);
  } else {
    route_scores<float>(*device_, scratch, x, classifier, num_real_tokens);
  }

  const Tensor list = routing.expert_list;
  using gpu::RouterPicks;
  if (num_tokens <= RouterPicks::kMaxBlocks && classifier.out_features == RouterPicks::kOutputs &&
      topk == RouterPicks::kTopk && num_experts <= RouterPicks::kMaxExperts && !list.empty() &&
      device_->multiplies_few_tokens()) {
    auto* const masks = static_cast<unsigned long long*>(router_counts_.data());
    return gpu::router_picks(*device_, num_tokens,
                             {.scores = scratch.data<float>(),
                              .bias = bias.data<float>(),
                              .num_real_tokens = num_real_tokens.data<int32_t>(),
                              .expert_idx = routing.expert_idx.data<int32_t>(),
                              .expert_weights = routing.expert_weights.data<float>(),
                              .identity_weight = routing.identity_weight.data<float>(),
                              .permuted_rows = routing.permuted_rows.data<int32_t>(),
                              .permuted_tokens = routing.permuted_tokens.data<int32_t>(),
                              .expert_offsets = routing.expert_offsets.data<int32_t>(),
                              .items = items_of(list),
                              .num_items = num_items_of(list),
                              .masks = masks,
                              .finished = reinterpret_cast<uint32_t*>(masks + RouterPicks::kMaxExperts),
                              .n_routed_experts = static_cast<int32_t>(n_routed_experts),
                              .first_expert = static_cast<int32_t>(first_expert),
                              .num_experts = static_cast<int32_t>(num_experts),
                              .scaling_factor = scaling_factor});
  }
  gpu::launch(*device_, num_tokens, 4 * (3 * classifier.out_features + 4),
              RoutePicks{.expert_idx = routing.expert_idx.data<int32_t>(),
                         .expert_weights = routing.expert_weights.data<float>(),
                         .identity_weight = routing.identity_weight.data<float>(),
                         .permuted_rows = routing.permuted_rows.data<int32_t>(),
                         .scores = scratch.data<float>(),
                         .bias = bias.data<float>(),
                         .num_real_tokens = num_real_tokens.data<int32_t>(),
                         .topk = topk,
                         .n = classifier.out_features,
                         .n_routed_experts = n_routed_experts,
                         .first_expert = first_expert,
                         .num_experts = num_experts,
                         .scaling_factor = scaling_factor});
  permute(routing);
  if (num_tokens <= gpu::kFewTokens && lists_experts(routing, x))
    gpu::launch(*device_, 1, 0,
                ListExperts{.expert_offsets = routing.expert_offsets.data<int32_t>(),
                            .num_items = num_items_of(list),
                            .items = items_of(list),
                            .num_experts = num_experts});
}

void CudaOps::permute(const Routing& routing) {
  const int64_t num_experts = routing.expert_offsets.size(0) - 1;
  gpu::launch(*device_, num_experts + 1, 0,
              Permute{.expert_idx = routing.expert_idx.data<int32_t>(),
                      .expert_offsets = routing.expert_offsets.data<int32_t>(),
                      .permuted_tokens = routing.permuted_tokens.data<int32_t>(),
                      .permuted_rows = routing.permuted_rows.data<int32_t>(),
                      .num_picks = routing.expert_idx.numel(),
                      .topk = routing.expert_idx.size(1),
                      .first_expert = routing.first_expert,
                      .num_experts = num_experts});
}

bool CudaOps::lists_experts(const Routing& routing, Tensor x) const {
  return device_->multiplies_few_tokens() && !routing.expert_list.empty() && x.dtype() == DType::bf16 &&
         x.size(1) % 128 == 0;
}

// A kernel takes all rows of an expert. So where prompt tokens are multiplied in fp8 and generated tokens are not, each
// kind has a permutation of its own.
void CudaOps::moe_experts(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x,
                          const Routing& routing, const ExpertWeights& experts) {
  const int64_t num_tokens = x.size(0);
  const bool fp8 = multiplies_fp8(experts.gate_proj[0]) && multiplies_fp8(experts.up_proj[0]) &&
                   multiplies_fp8(experts.down_proj[0]);
  const int64_t exact = fp8 ? std::min(num_generated_, num_tokens) : num_tokens;
  if (exact == 0 || exact == num_tokens)
    return experts_of_one_kind(out, hidden, scratch, expert_out, x, routing, experts, exact == 0);
  for (const bool rounds_inputs : {false, true}) {
    const auto rows = [&](Tensor all) {
      return rounds_inputs ? all.slice(0, exact, num_tokens) : all.slice(0, 0, exact);
    };
    Routing kind = routing;
    kind.expert_idx = rows(routing.expert_idx);
    kind.expert_weights = rows(routing.expert_weights);
    kind.permuted_rows = rows(routing.permuted_rows);
    kind.expert_list = {};
    permute(kind);
    experts_of_one_kind(rows(out), hidden, scratch, expert_out, rows(x), kind, experts, rounds_inputs);
  }
}

// With few tokens, two kernels gather their inputs by the list of experts.
void CudaOps::experts_of_one_kind(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x,
                                  const Routing& routing, const ExpertWeights& experts, bool rounds_inputs) {
  const int64_t num_tokens = x.size(0), topk = routing.expert_idx.size(1), rows = num_tokens * topk;
  const int64_t num_experts = static_cast<int64_t>(experts.gate_proj.size());
  const Tensor gate = hidden.first(rows), up = scratch.first(rows), permuted = expert_out.first(rows);
  const auto fits = [&](Tensor to, Tensor from, std::span<const Weight> weights) {
    return fits_few_tokens(grouped_problem(to, from, routing.expert_offsets.data<int32_t>()), GroupedWeights(weights));
  };
  if (num_tokens <= gpu::kFewTokens && lists_experts(routing, x) && fits(gate, x, experts.gate_proj) &&
      fits(up, x, experts.up_proj) && fits(permuted, gate, experts.down_proj)) {
    gpu::few_token_experts(*device_, {items_of(routing.expert_list), num_items_of(routing.expert_list)},
                           std::min(rows, num_experts), routing.permuted_tokens.data<int32_t>(), permuted, gate, x,
                           experts);
  } else if (multiplies_packed(experts) || (!rounds_inputs && multiplies_codes(experts))) {
    sliced_experts(permuted, gate, x, routing, experts);
  } else {
    permuted_experts(permuted, gate, up, x, routing, experts, rounds_inputs);
  }
  gpu::launch(*device_, num_tokens, 0,
              Combine{.out = View(out),
                      .expert_out = View(permuted),
                      .expert_weights = routing.expert_weights.data<float>(),
                      .permuted_rows = routing.permuted_rows.data<int32_t>(),
                      .topk = topk,
                      .dim = x.size(1),
                      .wide = gpu::is_wide(View(out), x.size(1)) && gpu::is_wide(View(permuted), x.size(1))});
}

bool CudaOps::multiplies_packed(const ExpertWeights& experts) const {
  const auto all = [&](std::span<const Weight> weights) {
    return std::all_of(weights.begin(), weights.end(), [&](const Weight& weight) {
      return multiplies_packed(weight) && weight.format == weights[0].format;
    });
  };
  return experts.gate_proj.size() <= gpu::ExpertMatrices::kMost && all(experts.gate_proj) && all(experts.up_proj) &&
         all(experts.down_proj) && experts.gate_proj[0].format == experts.up_proj[0].format;
}

bool CudaOps::multiplies_codes(const ExpertWeights& experts) const {
  const auto all = [&](std::span<const Weight> weights) {
    return std::all_of(weights.begin(), weights.end(), [&](const Weight& weight) {
      return multiplies_codes(weight) && gpu::has_scales_behind(weight);
    });
  };
  return experts.gate_proj.size() <= gpu::ExpertMatrices::kMost && all(experts.gate_proj) && all(experts.up_proj) &&
         all(experts.down_proj);
}

// For any number of tokens: the same kernels, by a list whose items have at most kPackedTokens rows. The router has
// made the list where the step has at most kPackedTokens tokens.
void CudaOps::sliced_experts(Tensor permuted, Tensor inner, Tensor x, const Routing& routing,
                             const ExpertWeights& experts) {
  const int64_t num_tokens = x.size(0), rows = permuted.size(0);
  const int64_t num_experts = static_cast<int64_t>(experts.gate_proj.size());
  gpu::ExpertList list;
  int64_t max_items = std::min(rows, num_experts);
  if (num_tokens <= gpu::kPackedTokens && lists_experts(routing, x)) {
    list = {items_of(routing.expert_list), num_items_of(routing.expert_list)};
  } else {
    max_items = std::min(rows, num_experts + rows / gpu::kPackedTokens);
    int32_t* const memory = static_cast<int32_t*>(workspace().data());
    LC_CHECK(4 + max_items * int64_t{sizeof(gpu::ExpertRows)} <= workspace().bytes(), rows, " rows of experts");
    list = {reinterpret_cast<gpu::ExpertRows*>(memory + 1), memory};
    gpu::launch(*device_, 1, 0,
                ListSlices{.expert_offsets = routing.expert_offsets.data<int32_t>(),
                           .num_items = memory,
                           .items = reinterpret_cast<gpu::ExpertRows*>(memory + 1),
                           .num_experts = num_experts});
  }
  static_assert(gpu::kFp8Tokens == gpu::kPackedTokens);
  (experts.gate_proj[0].format == WeightFormat::fp8_block ? gpu::fp8_experts : gpu::packed_experts)(
      *device_, list, max_items, routing.permuted_tokens.data<int32_t>(), permuted, inner, x, experts);
}

// TMA cannot gather rows, so the experts' inputs are first copied in permuted order. The copy uses `permuted`, which is
// free until the down projection. rounds_inputs: fp8 rows, which need half the space; the down projection's rows use
// `up`.
void CudaOps::permuted_experts(Tensor permuted, Tensor gate, Tensor up, Tensor x, const Routing& routing,
                               const ExpertWeights& experts, bool rounds_inputs) {
  const int64_t rows = permuted.size(0), num_experts = static_cast<int64_t>(experts.gate_proj.size());
  const int32_t* expert_offsets = routing.expert_offsets.data<int32_t>();
  const int32_t* tokens = routing.permuted_tokens.data<int32_t>();
  const int32_t* num_rows = expert_offsets + num_experts;

  if (rounds_inputs) {
    const Fp8Rows inputs(permuted.raw(), rows, x.size(1));
    quantize_rows(inputs, x, tokens, expert_offsets, num_experts);
    grouped_linear(gate, inputs, expert_offsets, experts.gate_proj);
    grouped_linear(up, inputs, expert_offsets, experts.up_proj);
  } else {
    gpu::gather_rows(*device_, rows,
                     {.out = View(permuted), .x = View(x), .rows = tokens, .dim = x.size(1), .num_rows = num_rows});
    if (gate_up(gate, permuted, expert_offsets, experts.gate_proj, experts.up_proj))
      return grouped_linear(permuted, gate, expert_offsets, experts.down_proj);
    grouped_linear(gate, permuted, expert_offsets, experts.gate_proj);
    grouped_linear(up, permuted, expert_offsets, experts.up_proj);
  }
  gpu::silu_mul(*device_, rows,
                {.out = View(gate), .gate = View(gate), .up = View(up), .dim = gate.size(1), .num_rows = num_rows});
  if (rounds_inputs) {
    const Fp8Rows inner(up.raw(), rows, gate.size(1));
    quantize_rows(inner, gate, nullptr, expert_offsets, num_experts);
    grouped_linear(permuted, inner, expert_offsets, experts.down_proj);
  } else {
    grouped_linear(permuted, gate, expert_offsets, experts.down_proj);
  }
}

}  // namespace longcat
