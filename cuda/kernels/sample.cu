// Sampling and log-probabilities. sampler.h explains how a row is sampled.
#include <algorithm>
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/sampler.h"
#include "cuda/kernels/simt_launch.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::Sampler;

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
            const Scored candidate{row[id] == row[id] ? row[id] : Block::minus_infinity(), static_cast<int32_t>(id)};
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

// Splits off the first `bytes` of a range, aligned to 16.
template <class T>
T* take(char*& from, int64_t bytes) {
  T* const taken = reinterpret_cast<T*>(from);
  from += (bytes + 15) / 16 * 16;
  return taken;
}

}  // namespace

void CudaOps::set_sampling_rows(std::span<const SamplingRow> rows, std::span<const SamplingRow> choices) {
  pack_sampling_rows(packed_rows_, rows, choices);
  const int64_t bytes = static_cast<int64_t>(packed_rows_.size());
  if (bytes > sampling_rows_.bytes()) {
    sampling_rows_ = {};  // work in flight may still read it: see CudaDevice::free
    allocate_sampling_rows(bytes + bytes / 4);
  }
  device_->upload(sampling_rows_.data(), packed_rows_.data(), bytes);
}

void CudaOps::sample(Tensor token_ids, Tensor logits, Tensor lane, Tensor block_tables, Tensor choice) {
  const int64_t num_rows = token_ids.size(0), vocab = logits.size(1);
  const int64_t blocks = (vocab + Sampler::kMaxSlice - 1) / Sampler::kMaxSlice;
  const int64_t scratch_bytes = 2 * ((vocab * 4 + 15) / 16 * 16) + blocks * int64_t{sizeof(gpu::ScoredId)};
  const int64_t rows_at_once = std::min({num_rows, kSamplingRowsAtOnce, workspace().bytes() / scratch_bytes});
  LC_CHECK(vocab <= Sampler::kMaxVocab && (num_rows == 0 || rows_at_once > 0), vocab, " ids");
  char* scratch = static_cast<char*>(workspace().data());
  Sampler sampler{.token_ids = token_ids.data<int32_t>(),
                  .logits = logits.data<float>(),
                  .logits_stride = logits.stride(0),
                  .packed = static_cast<const unsigned char* const*>(sampling_rows_address_.data()),
                  .choice = choice.data<const int32_t>(),
                  .lane = lane.data<int32_t>(),
                  .block_tables = block_tables.data<int32_t>(),
                  .block_table_stride = block_tables.stride(0),
                  .states = static_cast<gpu::SamplerState*>(sampling_states_.data()),
                  .bins = static_cast<unsigned long long*>(sampling_bins_.data()),
                  .scores = take<float>(scratch, rows_at_once * vocab * 4),
                  .candidates = take<int32_t>(scratch, rows_at_once * vocab * 4),
                  .bests = take<gpu::ScoredId>(scratch, rows_at_once * blocks * int64_t{sizeof(gpu::ScoredId)}),
                  .vocab = static_cast<int32_t>(vocab),
                  .slice = Sampler::kMaxSlice,
                  .blocks_per_row = static_cast<int32_t>(blocks),
                  .first_row = 0};
  for (int64_t first = 0; first < num_rows; first += rows_at_once) {
    sampler.first_row = static_cast<int32_t>(first);
    const int64_t grid = std::min(rows_at_once, num_rows - first) * blocks;
    simt::launch(*device_, grid, gpu::SamplerScores{sampler});
    simt::launch(*device_, grid, gpu::SamplerBins{sampler});
    simt::launch(*device_, grid, gpu::SamplerDraws{sampler});
  }
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
