#include "model/kv_cache.h"

namespace longcat {

int64_t KvCache::block_bytes(const ModelConfig& config, DType dtype) {
  return kBlockSize * (config.num_sub_layers() * config.latent_dim() * size_of(dtype) + size_of(DType::i32));
}

KvCache::KvCache(Device& device, const ModelConfig& config, int64_t num_blocks, DType dtype)
    : num_blocks_(num_blocks),
      latent_dim_(config.latent_dim()),
      dtype_(dtype),
      latents_(device, config.num_sub_layers() * num_blocks * kBlockSize * config.latent_dim() * size_of(dtype)),
      lane_(device, num_blocks * kBlockSize * size_of(DType::i32)) {}

Tensor KvCache::latents(int64_t sub_layer) const {
  const int64_t bytes = num_blocks_ * kBlockSize * latent_dim_ * size_of(dtype_);
  return Tensor(static_cast<char*>(latents_.data()) + sub_layer * bytes, dtype_,
                {num_blocks_ * kBlockSize, latent_dim_});
}

}  // namespace longcat
