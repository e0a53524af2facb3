#include "model/kv_cache.h"

namespace longcat {

int64_t KvCache::block_bytes(const ModelConfig& config, DType dtype) {
  const int64_t row_bytes = latent_row_size(dtype, config.kv_lora_rank, config.qk_rope_head_dim) * size_of(dtype);
  return kBlockSize * num_sub_layers(config) * row_bytes + kLaneBytes;
}

KvCache::KvCache(Device& device, const ModelConfig& config, int64_t num_blocks, DType dtype)
    : device_(device),
      num_blocks_(num_blocks),
      num_sub_layers_(num_sub_layers(config)),
      row_size_(latent_row_size(dtype, config.kv_lora_rank, config.qk_rope_head_dim)),
      latent_bytes_(block_bytes(config, dtype) - kLaneBytes),
      dtype_(dtype),
      latents_(device, num_blocks * latent_bytes_),
      token_lane_(device, num_blocks * kLaneBytes) {}

Tensor KvCache::latents(int64_t sub_layer) const {
  return Tensor(latents_.data(), dtype_, {num_blocks_, num_sub_layers_, kBlockSize, row_size_}).index(1, sub_layer);
}

void KvCache::copy_block(int64_t to, int64_t from) {
  device_.copy(latents_of(to), latents_of(from), latent_bytes_);
  device_.copy(lane_of(to), lane_of(from), kLaneBytes);
}

void KvCache::swap_out_block(void* host, int64_t block) {
  device_.download(host, latents_of(block), latent_bytes_);
  device_.download(static_cast<char*>(host) + latent_bytes_, lane_of(block), kLaneBytes);
}

void KvCache::swap_in_block(int64_t block, const void* host) {
  device_.upload(latents_of(block), host, latent_bytes_);
  device_.upload(lane_of(block), static_cast<const char*>(host) + latent_bytes_, kLaneBytes);
}

}  // namespace longcat
