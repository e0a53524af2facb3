#include "cpu/latents.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "cpu/vec.h"
#include "ops/weight.h"

namespace longcat::cpu {

namespace {

void pack_fp8(uint8_t* row, const float* values, Fp8Latent layout) {
  for (int64_t g = 0; g < layout.num_groups(); ++g) {
    const int64_t begin = g * Fp8Latent::kGroup, end = std::min(begin + Fp8Latent::kGroup, layout.kv_lora_rank);
    float largest = 0;
    for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::abs(values[k]));
    const float scale = fp8_scale(largest);
    for (int64_t k = begin; k < end; ++k) row[k] = to_e4m3(values[k] / scale);
    std::memcpy(row + layout.scales_offset() + 4 * g, &scale, 4);
  }
  for (int64_t k = 0; k < layout.rope_dim; ++k) {
    const bf16 value = to_bf16(values[layout.kv_lora_rank + k]);
    std::memcpy(row + layout.rope_offset() + 2 * k, &value, 2);
  }
}

void unpack_fp8(float* values, const uint8_t* row, Fp8Latent layout) {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> all;
    for (int code = 0; code < 256; ++code) all[static_cast<size_t>(code)] = e4m3_to_float(static_cast<uint8_t>(code));
    return all;
  }();
  for (int64_t g = 0; g < layout.num_groups(); ++g) {
    const int64_t begin = g * Fp8Latent::kGroup, end = std::min(begin + Fp8Latent::kGroup, layout.kv_lora_rank);
    float scale;
    std::memcpy(&scale, row + layout.scales_offset() + 4 * g, 4);
    for (int64_t k = begin; k < end; ++k) values[k] = table[row[k]] * scale;
  }
  for (int64_t k = 0; k < layout.rope_dim; ++k) {
    bf16 value;
    std::memcpy(&value, row + layout.rope_offset() + 2 * k, 2);
    values[layout.kv_lora_rank + k] = to_float(value);
  }
}

LC_CLONES void widen_bf16(float* out, const bf16* x, int64_t n) {
  for (int64_t k = 0; k < n; ++k) out[k] = to_float(x[k]);
}

}  // namespace

void store_latent(Tensor latents, const int32_t* block_table, int64_t position, const float* values,
                  int64_t kv_lora_rank, int64_t rope_dim) {
  switch (latents.dtype()) {
    case DType::f8_e4m3:
      return pack_fp8(latent_row<uint8_t>(latents, block_table, position), values, {kv_lora_rank, rope_dim});
    case DType::bf16: {
      bf16* row = latent_row<bf16>(latents, block_table, position);
      for (int64_t k = 0; k < kv_lora_rank + rope_dim; ++k) row[k] = to_bf16(values[k]);
      return;
    }
    default:
      std::copy_n(values, kv_lora_rank + rope_dim, latent_row<float>(latents, block_table, position));
  }
}

const float* read_latents(float* scratch, Tensor latents, const int32_t* block_table, int64_t begin, int64_t end,
                          int64_t kv_lora_rank, int64_t rope_dim) {
  const int64_t dim = kv_lora_rank + rope_dim;
  switch (latents.dtype()) {
    case DType::f8_e4m3:
      for (int64_t s = begin; s < end; ++s)
        unpack_fp8(scratch + (s - begin) * dim, latent_row<uint8_t>(latents, block_table, s), {kv_lora_rank, rope_dim});
      return scratch;
    case DType::bf16:
      widen_bf16(scratch, latent_row<bf16>(latents, block_table, begin), (end - begin) * dim);
      return scratch;
    default:
      return latent_row<float>(latents, block_table, begin);
  }
}

}  // namespace longcat::cpu
