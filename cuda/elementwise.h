// Row kernels that the experts share with the dense layers.
#pragma once

#include "cuda/block.h"

namespace longcat::gpu {

// out = silu(gate) * up. num_rows: rows from there on are left as they are (null: none).
struct SiluMul {
  static constexpr int kThreads = 256;
  View out, gate, up;
  int64_t dim;
  const int32_t* num_rows;
  LC_HD void operator()(const Block& block) const;
};
void silu_mul(GpuDevice& device, int64_t num_blocks, const SiluMul& kernel);

// out[i] = x[rows[i]].
struct GatherRows {
  static constexpr int kThreads = 256;
  View out, x;
  const int32_t* rows;
  int64_t dim;
  const int32_t* num_rows;
  LC_HD void operator()(const Block& block) const;
};
void gather_rows(GpuDevice& device, int64_t num_blocks, const GatherRows& kernel);

}  // namespace longcat::gpu
