// The memory that an engine allocates beside its weights, computed before anything is loaded.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "io/model_config.h"
#include "model/shard.h"

namespace longcat {

struct BufferPlan {
  int64_t block_bytes;       // [bytes] one block of the latent cache: 64 tokens in all sub-layers
  int64_t activation_bytes;  // [bytes] written by the largest step on the CPU, when all experts get equally many tokens
  int64_t step_bytes;        // [bytes] batches, block tables and logits
};

// The allocations of one rank for these limits. Throws std::invalid_argument for a negative limit.
BufferPlan plan_buffers(const ModelConfig& config, const Shard& shard, DType kv_cache_dtype, int64_t max_model_len,
                        int64_t max_num_seqs, int64_t max_num_batched_tokens);

// The blocks of the latent cache that `budget` bytes hold, with the null block; at most those that max_num_seqs
// sequences of max_model_len tokens fill. Throws OutOfMemory when they do not hold one block beside the null block.
int64_t plan_cache_blocks(int64_t budget, int64_t block_bytes, int64_t max_num_seqs, int64_t max_model_len);

}  // namespace longcat
