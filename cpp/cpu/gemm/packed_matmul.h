// Products with the packed formats (ops/packed.h), and the 8-bit inputs that the integer formats need.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/packed_kernels.h"

namespace longcat::cpu {

// Rows of inputs in 8 bits with one scale per 32 columns, padded with zeros, or rounded to bf16, or both. The memory
// grows and never shrinks.
class QuantizedInputs {
 public:
  // Forgets the rows of both kinds.
  void clear() { are_quantized_ = are_rounded_ = false; }

  // x: num_rows rows of in_features floats. A NaN or an infinity makes the scale of its block NaN.
  void quantize(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows, int64_t in_features,
                const PackedKernels& kernels = cpu::kernels<PackedKernels>());

  // The same rows rounded to bf16, on sets that multiply these (PackedKernels::rounded, DotKernels::rounded).
  void round(ThreadPool& pool, const float* x, int64_t x_stride, int64_t num_rows, int64_t in_features,
             const PackedKernels& kernels = cpu::kernels<PackedKernels>());

  const int8_t* values(int64_t row) const { return values_.data() + row * num_blocks_ * 32; }
  const InputBlock* blocks(int64_t row) const { return blocks_.data() + row * num_blocks_; }
  bool are_quantized() const { return are_quantized_; }
  bool are_rounded() const { return are_rounded_; }
  const bf16* rounded(int64_t row) const { return rounded_[static_cast<size_t>(row * num_blocks_)].values; }

 private:
  struct alignas(64) RoundedBlock {
    bf16 values[32];
  };
  int64_t num_blocks_ = 0;
  bool are_quantized_ = false, are_rounded_ = false;
  std::vector<int8_t> values_;         // [num_rows, num_blocks * 32]
  std::vector<InputBlock> blocks_;     // [num_rows, num_blocks]
  std::vector<RoundedBlock> rounded_;  // [num_rows, num_blocks]
};

// Like matmul_block; first_row must be a multiple of 8. Formats of integers read block.quantized instead of block.x,
// and so does bf16_x8 when these are rounded to bf16.
void packed_matmul_block(const Weight& weight, const MatmulBlock& block,
                         const PackedKernels& kernels = cpu::kernels<PackedKernels>());

}  // namespace longcat::cpu
