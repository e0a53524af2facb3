// The paged latent cache. A block holds 64 tokens. Each token has one latent row per sub-layer (attention), one index
// key per indexer of sparse attention, and its id in the token lane. A copy of a sequence's blocks therefore includes
// all that its next tokens read.
#pragma once

#include "base/buffer.h"
#include "io/model_config.h"
#include "ops/batch.h"

namespace longcat {

// The dtypes of a cache. latents: f32, bf16, f8_e4m3 or i8 (rows as in Fp8Latent, Int8Latent). index_keys: f32, bf16 or
// i8 (Int8IndexKey). Keys in 8 bits choose other positions at near-ties, so they are an option.
struct CacheDTypes {
  DType latents, index_keys;

  CacheDTypes(DType latents) : CacheDTypes(latents, latents == DType::f32 ? DType::f32 : DType::bf16) {}
  CacheDTypes(DType latents, DType index_keys) : latents(latents), index_keys(index_keys) {}
};

class KvCache {
 public:
  // Block 0 is the null block: padded rows write there, and its content is never used.
  KvCache(Device& device, const ModelConfig& config, int64_t num_blocks, CacheDTypes dtypes);

  // Size of one block over all sub-layers, with its index keys and its part of the token lane [bytes].
  static int64_t block_bytes(const ModelConfig& config, CacheDTypes dtypes);

  // Sub-layers of a block: two per layer and one for the MTP layer. The MTP entry for the pair (hidden state of
  // position p, token of p + 1) is at position p, because the step that computes p writes it.
  static int64_t num_sub_layers(const ModelConfig& config) { return config.num_sub_layers() + 1; }

  // Sets of index keys of a block, 0 with dense attention: one for each owner of a selection, the MTP layer's last.
  static int64_t num_index_layers(const ModelConfig& config) {
    return config.sparse ? config.sparse->owners_before(config.num_sub_layers()) + 1 : 0;
  }

  int64_t num_blocks() const { return num_blocks_; }
  DType dtype() const { return dtypes_.latents; }
  Tensor latents(int64_t sub_layer) const;       // [num_blocks, 64, latent row], blocks strided
  Tensor index_keys(int64_t index_layer) const;  // [num_blocks, 64, index key], blocks strided
  Tensor token_lane() const {
    return token_lane_.tensor(DType::i32, {num_blocks_ * kBlockSize});
  }  // token id of each slot

  // --- only inside submitted work ---------------------------------------------------------------------------------
  // Each call moves the latents of all sub-layers, the index keys and the token ids. `host`: block_bytes of
  // Device::allocate_host.
  void copy_block(int64_t to, int64_t from);
  void swap_out_block(void* host, int64_t block);
  void swap_in_block(int64_t block, const void* host);

 private:
  char* latents_of(int64_t block) const { return static_cast<char*>(latents_.data()) + block * latent_bytes_; }
  char* index_keys_of(int64_t block) const { return static_cast<char*>(index_keys_.data()) + block * index_bytes_; }
  char* lane_of(int64_t block) const { return static_cast<char*>(token_lane_.data()) + block * kLaneBytes; }

  static constexpr int64_t kLaneBytes = kBlockSize * 4;
  Device& device_;
  int64_t num_blocks_, num_sub_layers_, row_size_, num_index_layers_, index_key_size_;
  int64_t latent_bytes_, index_bytes_;  // [bytes] per block
  CacheDTypes dtypes_;
  Buffer latents_;     // [num_blocks, num_sub_layers, 64, row]
  Buffer index_keys_;  // [num_blocks, num_index_layers, 64, index key]
  Buffer token_lane_;  // [num_blocks, 64] i32
};

}  // namespace longcat
