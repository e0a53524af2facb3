// What an engine allocates beside its weights, known before anything is loaded.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "io/model_config.h"
#include "model/shard.h"

namespace longcat {

struct BufferPlan {
  int64_t block_bytes;       // of the latent cache: 64 tokens in all sub-layers
  int64_t activation_bytes;  // of the largest step, as far as it is touched on the CPU when routing is even
  int64_t step_bytes;        // batches, block tables and logits
};

// As Engine allocates for these limits on one rank. Throws std::invalid_argument for a negative one.
BufferPlan plan_buffers(const ModelConfig& config, const Shard& shard, DType kv_cache_dtype, int64_t max_model_len,
                        int64_t max_num_seqs, int64_t max_num_batched_tokens);

}  // namespace longcat
