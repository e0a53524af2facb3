// Router and experts of the shortcut MoE. Identity ("zero") experts are picked like the others and never computed.
#include <algorithm>
#include <cmath>
#include <vector>

#include "base/mapped_file.h"
#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"
#include "cpu/rows.h"

namespace longcat {

namespace {

constexpr int64_t kRowGrain = 64;  // rows of an expert's weight that a thread takes at once

void softmax(float* x, int64_t n) {
  const float max = *std::max_element(x, x + n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - max);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

// The `topk` ids with the largest scores[id] + bias[id], ties to the lowest id, in ascending id.
void select_top(int32_t* picks, int64_t topk, const float* scores, const float* bias, int64_t n) {
  int64_t count = 0;
  const auto key = [&](int32_t id) { return scores[id] + bias[id]; };
  for (int32_t id = 0; id < n; ++id) {
    if (count == topk && !(key(id) > key(picks[count - 1]))) continue;
    if (count < topk) ++count;
    int64_t place = count - 1;
    for (; place > 0 && key(id) > key(picks[place - 1]); --place) picks[place] = picks[place - 1];
    picks[place] = id;
  }
  std::sort(picks, picks + count);
}

// Counting sort of the picks whose expert is here, tokens ascending within an expert.
void permute(Routing& routing, int64_t first_expert) {
  const int64_t num_tokens = routing.expert_idx.size(0), topk = routing.expert_idx.size(1);
  const int64_t num_experts = routing.expert_offsets.size(0) - 1;
  int32_t* offsets = routing.expert_offsets.data<int32_t>();
  const auto expert_here = [&](int64_t pick) {  // -1: not here
    const int64_t expert = routing.expert_idx.data<int32_t>()[pick] - first_expert;
    return 0 <= expert && expert < num_experts ? expert : -1;
  };
  std::fill_n(offsets, num_experts + 1, 0);
  for (int64_t i = 0; i < num_tokens * topk; ++i)
    if (const int64_t expert = expert_here(i); expert >= 0) ++offsets[expert + 1];
  for (int64_t e = 0; e < num_experts; ++e) offsets[e + 1] += offsets[e];

  thread_local std::vector<int32_t> next;  // next free row of each expert
  next.assign(offsets, offsets + num_experts);
  for (int64_t i = 0; i < num_tokens * topk; ++i) {
    const int64_t expert = expert_here(i);
    const int32_t row = expert >= 0 ? next[static_cast<size_t>(expert)]++ : -1;
    routing.permuted_rows.data<int32_t>()[i] = row;
    if (row >= 0) routing.permuted_tokens.data<int32_t>()[row] = static_cast<int32_t>(i / topk);
  }
}

// The rows of all active experts, in blocks of weight rows that threads take in turn.
struct ExpertRows {
  const std::vector<int32_t>& active;  // experts with rows
  const int32_t* offsets;              // [num_experts + 1], Routing::expert_offsets

  // Calls body(expert, first weight row, number of weight rows).
  template <class Body>
  void for_blocks(ThreadPool& pool, int64_t out_features, Body&& body) const {
    const int64_t blocks = (out_features + kRowGrain - 1) / kRowGrain;
    pool.parallel_for(std::ssize(active) * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % blocks * kRowGrain;
        body(active[static_cast<size_t>(i / blocks)], row, std::min(kRowGrain, out_features - row));
      }
    });
  }

  // out[i] = x[row_idx[i]] W^T (x[i] without row_idx), for the expert's rows i and num_rows of its weight rows.
  void multiply(Tensor out, Tensor x, const int32_t* row_idx, const Weight& weight, int32_t expert, int64_t row,
                int64_t num_rows, const cpu::QuantizedInputs* quantized) const {
    const int32_t first = offsets[expert];
    cpu::matmul_block(weight, {.out = out.row<float>(first) + row,
                               .out_stride = out.stride(0),
                               .x = row_idx ? x.data<float>() : x.row<float>(first),
                               .x_stride = x.stride(0),
                               .row_idx = row_idx ? row_idx + first : nullptr,
                               .num_inputs = offsets[expert + 1] - first,
                               .first_row = row,
                               .num_rows = num_rows,
                               .quantized = quantized,
                               .quantized_first = row_idx ? 0 : first});
  }
};

}  // namespace

void CpuOps::moe_route(Routing& routing, Tensor scratch, Tensor x, const Weight& classifier, Tensor bias,
                       Tensor num_real_tokens, int64_t n_routed_experts, int64_t first_expert, float scaling_factor) {
  const int64_t num_tokens = x.size(0), topk = routing.expert_idx.size(1), num_outputs = classifier.out_features;
  const int64_t num_real = num_real_tokens.data<int32_t>()[0];
  linear(scratch, x, classifier);
  pool_.parallel_for(num_tokens, grain_for(8 * num_outputs), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* scores = scratch.row<float>(t);
      int32_t* picks = routing.expert_idx.row<int32_t>(t);
      if (t >= num_real) {
        std::fill_n(picks, topk, static_cast<int32_t>(n_routed_experts));
        std::fill_n(routing.expert_weights.row<float>(t), topk, 0.0f);
        routing.identity_weight.data<float>()[t] = 0;
        continue;
      }
      softmax(scores, num_outputs);
      select_top(picks, topk, scores, bias.data<float>(), num_outputs);
      float identity = 0;
      for (int64_t j = 0; j < topk; ++j) {
        const float weight = scores[picks[j]] * scaling_factor;
        routing.expert_weights.row<float>(t)[j] = weight;
        if (picks[j] >= n_routed_experts) identity += weight;
      }
      routing.identity_weight.data<float>()[t] = identity;
    }
  });
  permute(routing, first_expert);
}

void CpuOps::read_experts_ahead(const Routing& routing, const ExpertWeights& experts) {
  const int32_t* offsets = routing.expert_offsets.data<int32_t>();
  const auto read = [](const Weight& weight) {
    if (weight.placement == Placement::disk) read_ahead(weight.data, weight.num_bytes());
  };
  for (size_t e = 0; e < experts.gate_proj.size(); ++e) {
    if (offsets[e + 1] == offsets[e]) continue;
    for (const auto& matrices : {experts.gate_proj, experts.up_proj, experts.down_proj}) read(matrices[e]);
  }
}

void CpuOps::moe_experts(Tensor out, Tensor hidden, Tensor scratch, Tensor expert_out, Tensor x, const Routing& routing,
                         const ExpertWeights& experts) {
  const int64_t num_tokens = x.size(0), topk = routing.expert_idx.size(1);
  const int32_t* offsets = routing.expert_offsets.data<int32_t>();
  const int32_t* tokens = routing.permuted_tokens.data<int32_t>();
  const int64_t num_experts = static_cast<int64_t>(experts.gate_proj.size());

  thread_local std::vector<int32_t> active;  // experts with rows
  active.clear();
  for (int32_t e = 0; e < num_experts; ++e)
    if (offsets[e + 1] > offsets[e]) active.push_back(e);
  const ExpertRows rows{.active = active, .offsets = offsets};
  const cpu::QuantizedInputs* quantized = quantize_for({experts.gate_proj, experts.up_proj}, x);
  rows.for_blocks(pool_, hidden.size(1), [&](int32_t expert, int64_t row, int64_t num_rows) {
    const size_t e = static_cast<size_t>(expert);
    rows.multiply(hidden, x, tokens, experts.gate_proj[e], expert, row, num_rows, quantized);
    rows.multiply(scratch, x, tokens, experts.up_proj[e], expert, row, num_rows, quantized);
    for (int64_t i = offsets[expert]; i < offsets[expert + 1]; ++i)
      cpu::silu_mul_row(hidden.row<float>(i) + row, hidden.row<float>(i) + row, scratch.row<float>(i) + row, num_rows);
  });
  quantized = quantize_for({experts.down_proj}, hidden.first(offsets[num_experts]));
  rows.for_blocks(pool_, expert_out.size(1), [&](int32_t expert, int64_t row, int64_t num_rows) {
    rows.multiply(expert_out, hidden, nullptr, experts.down_proj[static_cast<size_t>(expert)], expert, row, num_rows,
                  quantized);
  });

  pool_.parallel_for(num_tokens, grain_for(topk * out.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* y = out.row<float>(t);
      std::fill_n(y, out.size(1), 0.0f);
      for (int64_t j = 0; j < topk; ++j)
        if (const int32_t row = routing.permuted_rows.row<int32_t>(t)[j]; row >= 0)
          cpu::add_scaled(y, routing.expert_weights.row<float>(t)[j], expert_out.row<float>(row), out.size(1));
    }
  });
}

}  // namespace longcat
