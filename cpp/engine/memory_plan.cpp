#include "engine/memory_plan.h"

#include <algorithm>

#include "engine/batch_buffers.h"
#include "engine/model_runner.h"
#include "model/activations.h"
#include "model/kv_cache.h"
#include "ops/backend.h"

namespace longcat {

namespace {

// A device that counts the bytes asked for and gives no memory, so that the code that allocates also makes the plan.
class CountingDevice final : public Device {
 public:
  std::string name() const override { return "counting"; }
  int64_t default_cache_bytes(int64_t) const override { return 0; }
  void* allocate(int64_t bytes) override {
    bytes_ += bytes;
    return nullptr;
  }
  void free(void*, int64_t) noexcept override {}
  void* allocate_host(int64_t bytes) override { return allocate(bytes); }
  void free_host(void*, int64_t) noexcept override {}
  void copy_from_host(void*, const void*, int64_t) override {}
  void copy_to_host(void*, const void*, int64_t) override {}
  int64_t submit(std::function<void()>) override { return 0; }
  void wait(int64_t) override {}
  void upload(void*, const void*, int64_t) override {}
  void download(void*, const void*, int64_t) override {}
  void copy(void*, const void*, int64_t) override {}
  std::unique_ptr<Recording> record(std::function<void()>) override { return nullptr; }
  int64_t padded_rows(int64_t rows) const override { return rows; }

  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

}  // namespace

CachePlan plan_cache(const ModelConfig& config, const EngineOptions& options, CacheDTypes dtypes, int64_t auto_bytes) {
  const int64_t longest = config.max_position_embeddings;
  const int64_t max_model_len = options.max_model_len > 0 ? options.max_model_len : longest;
  if (max_model_len > longest)
    throw std::invalid_argument(
        str_cat("max_model_len=", max_model_len, " is more than the checkpoint's max_position_embeddings=", longest));
  const int64_t block_bytes = KvCache::block_bytes(config, dtypes);
  const int64_t budget = options.kv_cache_memory > 0 ? options.kv_cache_memory : auto_bytes;
  const int64_t useful = options.max_num_seqs * blocks_for(max_model_len) + 1;
  const int64_t num_blocks = std::min(useful, budget / block_bytes);
  if (num_blocks < 2)
    throw OutOfMemory(str_cat("[kv cache] ", budget, " bytes hold ", num_blocks, " blocks of ", kBlockSize, " tokens (",
                              block_bytes, " bytes each); expected at least 2. Raise kv_cache_memory."));
  return {.max_model_len = max_model_len, .block_bytes = block_bytes, .num_blocks = num_blocks};
}

RunnerLimits runner_limits(const EngineOptions& options, const CachePlan& cache) {
  return {.max_num_seqs = options.max_num_seqs,
          .max_draws = options.max_draws(),
          .max_num_batched_tokens = options.max_num_batched_tokens,
          .max_blocks_per_sequence = blocks_for(cache.max_model_len),
          .block_bytes = cache.block_bytes,
          .num_drafts = options.speculation.by_mtp() ? options.speculation.num_tokens : 0};
}

// The allocations of Model, ModelRunner and Drafter.
BufferPlan plan_buffers(const ModelConfig& config, const Shard& shard, const EngineOptions& options,
                        const CachePlan& cache) {
  const RunnerLimits limits = runner_limits(options, cache);
  const int64_t tokens = limits.max_num_batched_tokens, world = shard.world();
  CountingDevice activations, steps;
  const ActivationBuffers buffers(activations, config, shard, tokens, DType::f32);  // of the CPU
  const BatchBuffers batches(steps, tokens, limits.max_draws, limits.max_blocks_per_sequence, ModelRunner::kSlots,
                             limits.max_beside());
  const auto rows_here = [&](int64_t rows) { return (rows + world - 1) / world; };
  int64_t values = rows_here(limits.max_draws) * config.vocab_size + 3 * limits.max_draws;  // of 4 bytes
  if (world > 1) values += 2 * rows_here(limits.max_draws) * world * shard.vocab.size();    // sent and received
  if (limits.num_drafts > 0) {
    const int64_t sequences = limits.max_drafting();
    values += rows_here(sequences) * config.vocab_size + 1 +
              (7 + limits.num_drafts + limits.max_blocks_per_sequence) * sequences;
  }
  // Pages that are never written cost nothing. With dense attention, only decoding tokens have latent queries; only
  // picks of routed experts have expert rows.
  const int64_t latent_rows = config.sparse ? 0 : tokens - std::min(limits.max_num_seqs, tokens);
  const int64_t picks = tokens * config.moe_topk;
  const int64_t picks_elsewhere =
      picks * (config.num_router_outputs() - shard.experts.size()) / config.num_router_outputs();
  const int64_t unwritten = latent_rows * shard.heads.size() * config.kv_lora_rank * 2 +
                            picks_elsewhere * (2 * shard.expert_ffn.size() + config.hidden_size);
  return {.activation_bytes = activations.bytes(),
          .unwritten_bytes = 4 * unwritten,
          .step_bytes = steps.bytes() + 4 * values};
}

int64_t plan_gpu_buffers(const ModelConfig& config, const Shard& shard, int64_t step_tokens) {
  CountingDevice activations;
  const ActivationBuffers buffers(activations, config, shard, step_tokens, DType::bf16);
  return activations.bytes() + kGpuOpsBytes + kGpuStepBytes;
}

}  // namespace longcat
