// The paged latent cache. A block holds 64 tokens; a token has one latent row in each sub-layer (attention) and its id
// in the lane, so whatever brings the latents of a sequence brings its N-gram history too.
#pragma once

#include "base/buffer.h"
#include "io/model_config.h"
#include "ops/batch.h"

namespace longcat {

class KvCache {
 public:
  // dtype: f32 or bf16. Block 0 is the null block: padded rows write there and nobody reads it.
  KvCache(Device& device, const ModelConfig& config, int64_t num_blocks, DType dtype);

  // Bytes of one block over all sub-layers, lane included.
  static int64_t block_bytes(const ModelConfig& config, DType dtype);

  int64_t num_blocks() const { return num_blocks_; }
  DType dtype() const { return dtype_; }
  Tensor latents(int64_t sub_layer) const;  // [num_blocks * 64, kv_lora_rank + rope]
  Tensor lane() const { return lane_.tensor(DType::i32, {num_blocks_ * kBlockSize}); }  // token id of each slot

 private:
  int64_t num_blocks_, latent_dim_;
  DType dtype_;
  Buffer latents_;  // [num_sub_layers, num_blocks * 64, latent_dim]
  Buffer lane_;
};

}  // namespace longcat
