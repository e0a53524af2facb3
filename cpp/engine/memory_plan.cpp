#include "engine/memory_plan.h"

#include <algorithm>

#include "engine/batch_buffers.h"
#include "engine/model_runner.h"
#include "model/activations.h"
#include "model/kv_cache.h"

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

BufferPlan plan_buffers(const ModelConfig& config, const Shard& shard, DType kv_cache_dtype, int64_t max_model_len,
                        int64_t max_num_seqs, int64_t max_num_batched_tokens) {
  if (max_model_len < 1 || max_num_seqs < 1 || max_num_batched_tokens < 1)
    throw std::invalid_argument("max_model_len, max_num_seqs and max_num_batched_tokens must be positive");
  CountingDevice activations, steps;
  const ActivationBuffers buffers(activations, config, shard, max_num_batched_tokens, DType::f32);  // of the CPU
  const BatchBuffers batches(steps, max_num_batched_tokens, max_num_seqs, (max_model_len + kBlockSize - 1) / kBlockSize,
                             ModelRunner::kSlots);
  // Pages that are never written take no memory. Only decoding tokens have latent queries, and only picks of routed
  // experts have expert rows.
  const int64_t latent_rows = max_num_batched_tokens - std::min(max_num_seqs, max_num_batched_tokens);
  const int64_t picks = max_num_batched_tokens * config.moe_topk;
  const int64_t picks_elsewhere =
      picks * (config.num_router_outputs() - shard.experts.size()) / config.num_router_outputs();
  const int64_t untouched = latent_rows * shard.heads.size() * config.kv_lora_rank * 2 +
                            picks_elsewhere * (2 * shard.expert_ffn.size() + config.hidden_size);
  // Logits, their row numbers and the sampled ids; with several ranks also the buffers for exchanging them.
  const int64_t world = shard.world(), logits_rows = (max_num_seqs + world - 1) / world;
  const int64_t logits = logits_rows * config.vocab_size * 4 * (world > 1 ? 3 : 1) + max_num_seqs * 2 * 4;
  return {.block_bytes = KvCache::block_bytes(config, kv_cache_dtype),
          .activation_bytes = activations.bytes() - 4 * untouched,  // f32
          .step_bytes = steps.bytes() + logits};
}

int64_t plan_cache_blocks(int64_t budget, int64_t block_bytes, int64_t max_num_seqs, int64_t max_model_len) {
  const int64_t useful = max_num_seqs * ((max_model_len + kBlockSize - 1) / kBlockSize) + 1;
  const int64_t num_blocks = std::min(useful, budget / block_bytes);
  if (num_blocks < 2)
    throw OutOfMemory(str_cat("[kv cache] ", budget, " bytes hold ", num_blocks, " blocks of ", kBlockSize, " tokens (",
                              block_bytes, " bytes each); expected at least 2. Raise kv_cache_memory."));
  return num_blocks;
}

}  // namespace longcat
