// Latent rows as kernels read and write them.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/kv_pieces.h"

namespace longcat {

// One sub-layer's latents (batch.h).
struct LatentView {
  unsigned char* data;  // [num_blocks, 64, row]: rows contiguous, blocks strided
  DType dtype;
  int64_t block_bytes, row_bytes;  // distance between blocks, between rows
  int64_t kv_lora_rank, rope_dim;

  LatentView(Tensor latents, int64_t kv_lora, int64_t rope)
      : data(latents.data<unsigned char>()),
        dtype(latents.dtype()),
        block_bytes(latents.stride(0) * size_of(latents.dtype())),
        row_bytes(latents.size(2) * size_of(latents.dtype())),
        kv_lora_rank(kv_lora),
        rope_dim(rope) {
    LC_CHECK(latents.size(1) == kBlockSize && latents.size(2) == latent_row_size(dtype, kv_lora, rope),
             latents.shape_string());
  }

  LC_HD unsigned char* row(const int32_t* block_table, int64_t position) const {
    return data + block_table[position / kBlockSize] * block_bytes + position % kBlockSize * row_bytes;
  }

  // Value k of a row: kv_lora_rank latent values, then the rope values.
  LC_HD float get(const unsigned char* row, int64_t k) const {
    return dtype == DType::f8_e4m3 ? get_as<DType::f8_e4m3>(row, k)
           : dtype == DType::bf16  ? get_as<DType::bf16>(row, k)
                                   : get_as<DType::f32>(row, k);
  }
  // The same for a dtype that is a compile-time constant.
  template <DType kDType>
  LC_HD float get_as(const unsigned char* row, int64_t k) const {
    if constexpr (kDType == DType::f8_e4m3) {
      const Fp8Latent layout{kv_lora_rank, rope_dim};
      if (k >= kv_lora_rank)
        return to_float(reinterpret_cast<const bf16*>(row + layout.rope_offset())[k - kv_lora_rank]);
      return e4m3_to_float(row[k]) *
             reinterpret_cast<const float*>(row + layout.scales_offset())[k / Fp8Latent::kGroup];
    } else if constexpr (kDType == DType::bf16) {
      return to_float(reinterpret_cast<const bf16*>(row)[k]);
    } else {
      return reinterpret_cast<const float*>(row)[k];
    }
  }
};

}  // namespace longcat
