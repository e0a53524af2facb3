#include "cpu/gemm/tile_matmul.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "cpu/gemm/packed_matmul.h"
#include "cpu/simd/dispatch.h"
#include "ops/packed.h"

namespace longcat::cpu {

namespace {

constexpr int64_t kInputsAtOnce = 64;  // their rows stay in the second-level cache

const bf16* rounded_row(const MatmulBlock& block, int64_t input) {
  return block.quantized->rounded(block.quantized_first + (block.row_idx ? block.row_idx[input] : input));
}

// Memory of this thread for `blocks` blocks of 32 values.
bf16* space_for(int64_t blocks) {
  thread_local std::vector<QuantizedInputs::RoundedBlock> space;  // grows and never shrinks
  if (space.size() < static_cast<size_t>(blocks)) space.resize(static_cast<size_t>(blocks));
  return space.data()->values;
}

// The inputs [first, first + count) as TiledRows::pairs.
const bf16* pairs_of(const MatmulBlock& block, int64_t first, int64_t count, int64_t num_blocks,
                     const TileKernels& kernels) {
  if (count == 1) return rounded_row(block, first);
  if (!block.row_idx)
    if (const bf16* pairs = block.quantized->pairs(block.quantized_first + first)) return pairs;
  bf16* const pairs = space_for((count + kPairedInputs - 1) / kPairedInputs * kPairedInputs * num_blocks);
  for (int64_t i = 0; i < count; i += kPairedInputs) {
    const bf16* rows[kPairedInputs];
    const int64_t num_rows = std::min(kPairedInputs, count - i);
    for (int64_t r = 0; r < num_rows; ++r) rows[r] = rounded_row(block, first + i + r);
    kernels.pair(pairs + i * num_blocks * kQuantBlock, rows, num_rows, num_blocks);
  }
  return pairs;
}

// The inputs [first, first + count) as adjacent rows.
const bf16* rows_of(const MatmulBlock& block, int64_t first, int64_t count, int64_t num_blocks) {
  if (!block.row_idx || count == 1) return rounded_row(block, first);
  const int64_t columns = num_blocks * kQuantBlock;
  bf16* const rows = space_for(count * num_blocks);
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(rows + i * columns, rounded_row(block, first + i), static_cast<size_t>(columns) * sizeof(bf16));
  return rows;
}

}  // namespace

const TileKernels* tile_kernels() {
#if defined(__x86_64__)
  static const TileKernels* const kernels =
      cpu_isa() == Isa::amx_bf16 ? &table_of<TileKernels, Isa::amx_bf16>() : nullptr;
  return kernels;
#else
  return nullptr;
#endif
}

void tile_matmul_block(const Weight& weight, const MatmulBlock& block, const TileKernels& kernels) {
  LC_CHECK(block.quantized && block.quantized->are_rounded() &&
           (weight.format == WeightFormat::bf16 || block.first_row % kPackedRows == 0));
  const int64_t n = weight.in_features, num_blocks = num_quant_blocks(n);
  for (int64_t first = 0; first < block.num_inputs; first += kInputsAtOnce) {
    const int64_t count = std::min(kInputsAtOnce, block.num_inputs - first);
    float* const out = block.out + first * block.out_stride;
    if (weight.format == WeightFormat::bf16) {
      kernels.rows({.out = out,
                    .out_stride = block.out_stride,
                    .rows = static_cast<const bf16*>(weight.data) + block.first_row * n,
                    .num_rows = block.num_rows,
                    .in_features = n,
                    .pairs = pairs_of(block, first, count, num_blocks, kernels),
                    .num_inputs = count});
    } else {
      const int64_t stride = packed_stride(weight.format, n);
      kernels.groups({.out = out,
                      .out_stride = block.out_stride,
                      .groups = static_cast<const uint8_t*>(weight.data) + block.first_row / kPackedRows * stride,
                      .group_stride = stride,
                      .num_rows = block.num_rows,
                      .in_features = n,
                      .x = rows_of(block, first, count, num_blocks),
                      .x_stride = num_blocks * kQuantBlock,
                      .num_inputs = count});
    }
  }
}

void QuantizedInputs::pair(ThreadPool& pool, int64_t num_rows, const TileKernels& kernels) {
  const int64_t tiles = (num_rows + kPairedInputs - 1) / kPairedInputs;
  const size_t blocks = static_cast<size_t>(tiles * kPairedInputs * num_blocks_);
  if (pairs_.size() < blocks) pairs_.resize(blocks);
  are_paired_ = true;
  pool.parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kPairedInputs, count = std::min(kPairedInputs, num_rows - first);
      const bf16* rows[kPairedInputs];
      for (int64_t r = 0; r < count; ++r) rows[r] = rounded(first + r);
      kernels.pair(pairs_[static_cast<size_t>(first * num_blocks_)].values, rows, count, num_blocks_);
    }
  });
}

}  // namespace longcat::cpu
