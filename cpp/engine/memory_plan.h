// The memory that an engine allocates beside its weights, computed before anything is loaded.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "engine/engine_options.h"
#include "engine/model_runner.h"
#include "io/model_config.h"
#include "model/kv_cache.h"
#include "model/shard.h"

namespace longcat {

inline int64_t blocks_for(int64_t num_tokens) { return (num_tokens + kBlockSize - 1) / kBlockSize; }

// The latent cache of an engine.
struct CachePlan {
  int64_t max_model_len;  // [tokens]
  int64_t block_bytes;    // one block: 64 tokens in all sub-layers
  int64_t num_blocks;     // with the null block
};

// It takes kv_cache_memory, or auto_bytes where that is 0, and at most what max_num_seqs sequences of max_model_len
// tokens fill. Throws std::invalid_argument when max_model_len is more than the checkpoint allows, and OutOfMemory when
// the cache does not hold one block beside the null block.
CachePlan plan_cache(const ModelConfig& config, const EngineOptions& options, CacheDTypes dtypes, int64_t auto_bytes);

RunnerLimits runner_limits(const EngineOptions& options, const CachePlan& cache);

// All buffers of one rank on the CPU, beside weights and cache [bytes].
struct BufferPlan {
  int64_t activation_bytes;  // of the largest step
  int64_t unwritten_bytes;   // of these: never written, when all experts get equally many tokens
  int64_t step_bytes;        // batches, block tables, logits, draft tokens
};

BufferPlan plan_buffers(const ModelConfig& config, const Shard& shard, const EngineOptions& options,
                        const CachePlan& cache);

// What a rank on a GPU keeps beside weights and cache [bytes]: activations of a step of step_tokens, kGpuOpsBytes and
// kGpuStepBytes.
int64_t plan_gpu_buffers(const ModelConfig& config, const Shard& shard, int64_t step_tokens);

}  // namespace longcat
