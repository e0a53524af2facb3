// Latent rows of the cache as floats.
#pragma once

#include "ops/batch.h"

namespace longcat::cpu {

// Writes `values` [kv_lora + rope] as row `position` of a sequence, rounded to the dtype of `latents`.
void store_latent(Tensor latents, const int32_t* block_table, int64_t position, const float* values,
                  int64_t kv_lora_rank, int64_t rope_dim);

// Rows of the positions [begin, end), all of one block: [end - begin, kv_lora + rope] floats, either where they lie or
// in `scratch` [64, kv_lora + rope].
const float* read_latents(float* scratch, Tensor latents, const int32_t* block_table, int64_t begin, int64_t end,
                          int64_t kv_lora_rank, int64_t rope_dim);

}  // namespace longcat::cpu
