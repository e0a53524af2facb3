// Sampling parameters and histories as Python tests pass them.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "bindings/bindings.h"
#include "ops/ops.h"

namespace longcat {

// The history of one sequence, in consecutive blocks 1, 2, ... of a cache.
inline std::vector<int32_t> consecutive_blocks(int64_t num_tokens) {
  std::vector<int32_t> blocks;
  for (int64_t first = 0; first < num_tokens; first += kBlockSize)
    blocks.push_back(static_cast<int32_t>(blocks.size()) + 1);
  return blocks;
}

// Rows of sampling parameters, the memory that they refer to, and their histories in a token lane.
struct SamplingCase {
  struct Lists {
    std::vector<LogitBias> logit_bias;
    std::vector<std::vector<int32_t>> bad_words;
    std::vector<int32_t> banned_ids, allowed_ids;
    std::vector<uint32_t> mask;
  };

  SamplingCase(const std::vector<pybind11::dict>& params, const std::vector<std::vector<int32_t>>& histories)
      : lists(params.size()) {
    size_t longest = 1;
    for (const auto& history : histories) longest = std::max(longest, history.size());
    width = static_cast<int64_t>(consecutive_blocks(static_cast<int64_t>(longest)).size());
    const int64_t num_rows = static_cast<int64_t>(params.size());
    lane.resize(static_cast<size_t>((num_rows * width + 1) * kBlockSize));
    tables.resize(static_cast<size_t>(num_rows * width));
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i) + 1;
    for (int64_t r = 0; r < num_rows; ++r) {
      const std::vector<int32_t>& history = histories[static_cast<size_t>(r)];
      std::copy(history.begin(), history.end(), lane.begin() + (r * width + 1) * kBlockSize);
      rows.push_back(make_row(params[static_cast<size_t>(r)], lists[static_cast<size_t>(r)], static_cast<int32_t>(r),
                              static_cast<int32_t>(history.size()) - 1));
    }
  }

  static SamplingRow make_row(const pybind11::dict& p, Lists& l, int32_t sequence, int32_t position) {
    const auto get = [&](const char* name, auto fallback) {
      return p.contains(name) ? p[name].cast<decltype(fallback)>() : fallback;
    };
    for (const auto& [token_id, bias] : get("logit_bias", std::map<int32_t, float>{}))
      l.logit_bias.push_back({token_id, bias});
    l.bad_words = get("bad_words", l.bad_words);
    l.banned_ids = get("banned_ids", l.banned_ids);
    l.allowed_ids = get("allowed_ids", l.allowed_ids);
    l.mask = get("mask", l.mask);
    return {.temperature = get("temperature", 1.0),
            .top_k = get("top_k", 0),
            .top_p = get("top_p", 1.0),
            .min_p = get("min_p", 0.0),
            .repetition_penalty = get("repetition_penalty", 1.0),
            .presence_penalty = get("presence_penalty", 0.0),
            .frequency_penalty = get("frequency_penalty", 0.0),
            .seed = get("seed", uint64_t{0}),
            .sample_idx = get("sample_idx", 0),
            .logits_row = sequence,
            .sequence = sequence,
            .position = position,
            .num_prompt_tokens = get("num_prompt_tokens", position + 1),
            .logit_bias = l.logit_bias,
            .bad_words = l.bad_words,
            .banned_ids = l.banned_ids,
            .allowed_ids = l.allowed_ids,
            .mask = l.mask};
  }

  Tensor lane_tensor() const {
    return Tensor(const_cast<int32_t*>(lane.data()), DType::i32, {static_cast<int64_t>(lane.size())});
  }
  Tensor table_tensor() const {
    return Tensor(const_cast<int32_t*>(tables.data()), DType::i32, {static_cast<int64_t>(rows.size()), width});
  }

  std::vector<Lists> lists;
  std::vector<SamplingRow> rows;
  std::vector<int32_t> lane, tables;
  int64_t width = 0;
};

}  // namespace longcat
