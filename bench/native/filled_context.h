// A history of any length without the hours of computing it. The cache is filled with random latents, index keys and
// token ids: their values do not change the time of a step behind them.
#pragma once

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "engine/engine.h"

namespace longcat::bench {

class FilledContext {
 public:
  // Fills the first `depth` positions of one sequence, and keeps room for `max_tokens` more in one step. The engine has
  // no requests: the sequence takes its blocks. Throws longcat::Error where the cache has too few.
  FilledContext(Engine& engine, int64_t depth, int64_t max_tokens)
      : engine_(engine),
        depth_(depth),
        blocks_(static_cast<size_t>((depth + max_tokens + kBlockSize - 1) / kBlockSize)),
        ids_(random_ids(std::max(kPiece, max_tokens))),
        buffers_(engine.ops().device(), std::max(kPiece, max_tokens), 1, static_cast<int64_t>(blocks_.size())),
        logits_(engine.ops().device(), engine.config().vocab_size * 4),
        row_(engine.ops().device(), 4) {
    if (static_cast<int64_t>(blocks_.size()) >= engine.cache().num_blocks())
      throw Error(str_cat("[bench] ", depth, " tokens need ", blocks_.size() + 1, " blocks of the cache, which has ",
                          engine.cache().num_blocks(), ": give --kv-cache-memory"));
    std::iota(blocks_.begin(), blocks_.end(), 1);
    for (int64_t start = 0; start < depth; start += kPiece) fill(start, std::min(kPiece, depth - start));
  }

  // One step: a generated token behind the history, with its logits.
  void generate() {
    compute(1, true);
    *static_cast<int32_t*>(row_.data()) = 0;
    engine_.model().logits(logits_.tensor(DType::f32, {1, engine_.config().vocab_size}), hidden_,
                           row_.tensor(DType::i32, {1}));
  }

  // One step: `tokens` prompt tokens behind the history, without logits.
  void prompt(int64_t tokens) { compute(tokens, false); }

 private:
  static constexpr int64_t kPiece = 512;

  std::vector<int32_t> random_ids(int64_t count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids)
      id = static_cast<int32_t>(3 + random_() % static_cast<uint32_t>(engine_.config().vocab_size - 3));
    return ids;
  }

  std::vector<float> random_values(int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }

  ForwardBatch batch(int64_t start, int64_t tokens, bool generated) {
    const Chunk chunk{.token_ids = std::span(ids_).first(static_cast<size_t>(tokens)),
                      .start = start,
                      .blocks = blocks_,
                      .generated = generated};
    return buffers_.upload({&chunk, 1});
  }

  void fill(int64_t start, int64_t tokens) {
    const ModelConfig& config = engine_.config();
    KvCache& cache = engine_.cache();
    const ForwardBatch rows = batch(start, tokens, false);
    for (int64_t i = 0; i < tokens; ++i)
      cache.token_lane().data<int32_t>()[slot_of(rows, 0, start + i)] = ids_[static_cast<size_t>(i)];
    const int64_t width = config.kv_lora_rank + config.qk_rope_head_dim, angles = config.qk_rope_head_dim / 2;
    const std::vector<float> values = random_values(tokens * width);
    std::vector<float> ones(static_cast<size_t>(std::max(width, tokens * angles)), 1.0f), scratch;
    const Tensor cos(ones.data(), DType::f32, {tokens, angles}), norm(ones.data(), DType::f32, {config.kv_lora_rank});
    for (int64_t i = 0; i < KvCache::num_sub_layers(config); ++i) {
      scratch = values;
      engine_.ops().mla_store(cache.latents(i), Tensor(scratch.data(), DType::f32, {tokens, width}), norm, 1e-6f, cos,
                              cos, rows);
    }
    for (int64_t i = 0; i < KvCache::num_index_layers(config); ++i) {
      const int64_t dim = config.sparse->index_head_dim;
      scratch = values;
      engine_.ops().index_store(cache.index_keys(i), Tensor(scratch.data(), DType::f32, {tokens, dim}),
                                Tensor(ones.data(), DType::f32, {dim}), 1e-6f, cos, cos, rows);
    }
  }

  void compute(int64_t tokens, bool generated) {
    hidden_ = engine_.model().forward(batch(depth_, tokens, generated), engine_.cache());
  }

  Engine& engine_;
  int64_t depth_;
  std::mt19937 random_{7};
  std::vector<int32_t> blocks_, ids_;
  BatchBuffers buffers_;
  Buffer logits_, row_;
  Tensor hidden_;
};

}  // namespace longcat::bench
