// Products with the packed formats (ops/packed.h), and the 8-bit inputs that the integer formats need.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/packed_kernels.h"
#include "cpu/gemm/tile_kernels.h"

namespace longcat::cpu {

// Rows of inputs in 8 bits with one scale per 32 columns, padded with zeros, or rounded to bf16, or both. The memory
// grows and never shrinks.
class QuantizedInputs {
 public:
  // Forgets the rows of all kinds.
  void clear() { are_quantized_ = are_rounded_ = are_paired_ = false; }

  // x: num_rows rows of in_features floats. A NaN or an infinity makes the scale of its block NaN.
  void quantize(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows, int64_t in_features,
                const PackedKernels& kernels = cpu::kernels<PackedKernels>());

  // The same rows rounded to bf16, on sets that multiply these (PackedKernels::rounded, DotKernels::rounded).
  void round(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows, int64_t in_features,
             const PackedKernels& kernels = cpu::kernels<PackedKernels>());

  // The rounded rows once more, as TiledRows::pairs.
  void pair(ThreadPool& pool, int64_t num_rows, const TileKernels& kernels);

  const int8_t* values(int64_t row) const { return values_.data() + row * num_blocks_ * 32; }
  const InputBlock* blocks(int64_t row) const { return blocks_.data() + row * num_blocks_; }
  bool are_quantized() const { return are_quantized_; }
  bool are_rounded() const { return are_rounded_; }
  const bf16* rounded(int64_t row) const { return rounded_[static_cast<size_t>(row * num_blocks_)].values; }
  // The pairs of the tiles from `row` on. Null where no tile begins, or without pair().
  const bf16* pairs(int64_t row) const {
    const bool begins = are_paired_ && row % kPairedInputs == 0;
    return begins ? pairs_[static_cast<size_t>(row * num_blocks_)].values : nullptr;
  }

  struct alignas(64) RoundedBlock {
    bf16 values[32];
  };

 private:
  int64_t num_blocks_ = 0;
  bool are_quantized_ = false, are_rounded_ = false, are_paired_ = false;
  std::vector<int8_t> values_;         // [num_rows, num_blocks * 32]
  std::vector<InputBlock> blocks_;     // [num_rows, num_blocks]
  std::vector<RoundedBlock> rounded_;  // [num_rows, num_blocks]
  std::vector<RoundedBlock> pairs_;    // [ceil(num_rows / 16), num_blocks, 16]
};

// Like matmul_block; first_row must be a multiple of 8. Formats of integers read block.quantized instead of block.x,
// and so does bf16_x8 when these are rounded to bf16.
void packed_matmul_block(const Weight& weight, const MatmulBlock& block,
                         const PackedKernels& kernels = cpu::kernels<PackedKernels>());

}  // namespace longcat::cpu
