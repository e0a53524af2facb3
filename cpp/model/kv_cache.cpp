#include "model/kv_cache.h"

namespace longcat {

namespace {

int64_t latent_bytes(const ModelConfig& config, DType dtype) {
  const int64_t row_bytes = latent_row_size(dtype, config.kv_lora_rank, config.qk_rope_head_dim) * size_of(dtype);
  return kBlockSize * KvCache::num_sub_layers(config) * row_bytes;
}

int64_t index_bytes(const ModelConfig& config, DType dtype) {
  if (!config.sparse) return 0;
  const int64_t key_bytes = index_key_size(dtype, config.sparse->index_head_dim) * size_of(dtype);
  return kBlockSize * KvCache::num_index_layers(config) * key_bytes;
}

}  // namespace

int64_t KvCache::block_bytes(const ModelConfig& config, CacheDTypes dtypes) {
  return latent_bytes(config, dtypes.latents) + index_bytes(config, dtypes.index_keys) + kLaneBytes;
}

KvCache::KvCache(Device& device, const ModelConfig& config, int64_t num_blocks, CacheDTypes dtypes)
    : device_(device),
      num_blocks_(num_blocks),
      num_sub_layers_(num_sub_layers(config)),
      row_size_(latent_row_size(dtypes.latents, config.kv_lora_rank, config.qk_rope_head_dim)),
      num_index_layers_(num_index_layers(config)),
      index_key_size_(config.sparse ? index_key_size(dtypes.index_keys, config.sparse->index_head_dim) : 0),
      latent_bytes_(latent_bytes(config, dtypes.latents)),
      index_bytes_(index_bytes(config, dtypes.index_keys)),
      dtypes_(dtypes),
      latents_(device, num_blocks * latent_bytes_),
      index_keys_(index_bytes_ > 0 ? Buffer(device, num_blocks * index_bytes_) : Buffer()),
      token_lane_(device, num_blocks * kLaneBytes) {}

Tensor KvCache::latents(int64_t sub_layer) const {
  return Tensor(latents_.data(), dtypes_.latents, {num_blocks_, num_sub_layers_, kBlockSize, row_size_})
      .index(1, sub_layer);
}

Tensor KvCache::index_keys(int64_t index_layer) const {
  return Tensor(index_keys_.data(), dtypes_.index_keys, {num_blocks_, num_index_layers_, kBlockSize, index_key_size_})
      .index(1, index_layer);
}

void KvCache::copy_block(int64_t to, int64_t from) {
  device_.copy(latents_of(to), latents_of(from), latent_bytes_);
  if (index_bytes_ > 0) device_.copy(index_keys_of(to), index_keys_of(from), index_bytes_);
  device_.copy(lane_of(to), lane_of(from), kLaneBytes);
}

void KvCache::swap_out_block(void* host, int64_t block) {
  char* const to = static_cast<char*>(host);
  device_.download(to, latents_of(block), latent_bytes_);
  if (index_bytes_ > 0) device_.download(to + latent_bytes_, index_keys_of(block), index_bytes_);
  device_.download(to + latent_bytes_ + index_bytes_, lane_of(block), kLaneBytes);
}

void KvCache::swap_in_block(int64_t block, const void* host) {
  const char* const from = static_cast<const char*>(host);
  device_.upload(latents_of(block), from, latent_bytes_);
  if (index_bytes_ > 0) device_.upload(index_keys_of(block), from + latent_bytes_, index_bytes_);
  device_.upload(lane_of(block), from + latent_bytes_ + index_bytes_, kLaneBytes);
}

}  // namespace longcat
