// Linear layers.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/pack.h"
#include "cpu/gemm/packed_matmul.h"
#include "cpu/gemm/tile_kernels.h"
#include "cpu/rows.h"
#include "ops/packed.h"

namespace longcat {

// Number of weight rows that a thread takes at once, in whole tiles. A thread's ranges are adjacent (ThreadPool). So
// few rows cost little, and all threads end at about the same time.
static int64_t row_grain(int64_t num_rows, int num_threads) {
  constexpr int64_t kTileRows = 64, kRangesPerThread = 32;
  return std::max(kTileRows, num_rows / (num_threads * kRangesPerThread) / kTileRows * kTileRows);
}

// Kernels read aligned elements. A plane that is not aligned in the file is copied. A bf16 matrix that is in memory, as
// the parts of kv_b_proj are, is packed: packed weights are read faster.
Weight CpuOps::prepare(const Weight& logical, Buffer& storage) {
  const auto misaligned = [](const void* data, size_t alignment) {
    return reinterpret_cast<uintptr_t>(data) % alignment != 0;
  };
  const int64_t count = logical.out_features * logical.in_features;
  Weight weight = logical;
  switch (logical.format) {
    case WeightFormat::f32:
    case WeightFormat::bf16: {
      if (logical.format == WeightFormat::bf16 && logical.placement == Placement::device) {
        weight.format = WeightFormat::bf16_x8;
        storage = Buffer(device_, weight.num_bytes());
        weight.data = storage.data();
        ::madvise(storage.data(), static_cast<size_t>(weight.num_bytes()), MADV_HUGEPAGE);  // read faster
        pool_.parallel_for(num_packed_groups(weight.out_features), 64, [&](int64_t begin, int64_t end) {
          cpu::pack_bf16(static_cast<uint8_t*>(storage.data()), logical, begin, end);
        });
        return weight;
      }
      const int64_t element = logical.format == WeightFormat::f32 ? 4 : 2;
      if (!misaligned(logical.data, static_cast<size_t>(element))) return weight;
      storage = Buffer(device_, count * element);
      std::memcpy(storage.data(), logical.data, static_cast<size_t>(count * element));
      weight.data = storage.data();
      weight.placement = Placement::device;
      return weight;
    }
    case WeightFormat::fp8_block: {
      if (!misaligned(logical.scales, alignof(float))) return weight;
      const int64_t scale_bytes = logical.num_bytes() - count;
      storage = Buffer(device_, scale_bytes);
      std::memcpy(storage.data(), logical.scales, static_cast<size_t>(scale_bytes));
      weight.scales = static_cast<const float*>(storage.data());
      return weight;
    }
    default:  // packed formats need no alignment
      return weight;
  }
}

void CpuOps::use_dtype(DType dtype) {
  rounds_inputs_ = dtype == DType::bf16 && cpu::kernels<cpu::PackedKernels>().round_row;
}

const cpu::QuantizedInputs* CpuOps::quantize_for(std::initializer_list<std::span<const Weight>> weights, Tensor x) {
  bool any_of_integers = false, any_rounded = false;
  for (const std::span<const Weight> several : weights)
    for (const Weight& weight : several) {
      any_of_integers |= cpu::want_quantized_inputs(weight.format);
      any_rounded |= rounds_inputs_ && (weight.format == WeightFormat::bf16 || weight.format == WeightFormat::bf16_x8);
    }
  quantized_.clear();
  if (any_of_integers) quantized_.quantize(pool_, x.data<float>(), x.stride(0), x.size(0), x.size(1));
  if (any_rounded) quantized_.round(pool_, x.data<float>(), x.stride(0), x.size(0), x.size(1));
  return any_of_integers || any_rounded ? &quantized_ : nullptr;
}

const cpu::QuantizedInputs* CpuOps::quantize_for(const Weight& weight, Tensor x) {
  const cpu::QuantizedInputs* const quantized = quantize_for({{&weight, 1}}, x);
  const cpu::TileKernels* const tiles = weight.format == WeightFormat::bf16 ? cpu::tile_kernels() : nullptr;
  if (quantized && tiles && x.size(0) > 1) quantized_.pair(pool_, x.size(0), *tiles);
  return quantized;
}

void CpuOps::linear(Tensor out, Tensor x, const Weight& weight) {
  LC_CHECK(x.size(1) == weight.in_features && out.size(1) == weight.out_features && x.size(0) == out.size(0), "linear ",
           out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ", weight.in_features, "]");
  const cpu::QuantizedInputs* quantized = quantize_for(weight, x);
  const int64_t grain = row_grain(weight.out_features, pool_.num_threads());
  pool_.parallel_for(weight.out_features, grain, [&](int64_t begin, int64_t end) {
    cpu::matmul_block(weight, {.out = out.data<float>() + begin,
                               .out_stride = out.stride(0),
                               .x = x.data<float>(),
                               .x_stride = x.stride(0),
                               .row_idx = nullptr,
                               .num_inputs = x.size(0),
                               .first_row = begin,
                               .num_rows = end - begin,
                               .quantized = quantized});
  });
}

// One pass over the rows of both weights, without a barrier between them or before the activation.
void CpuOps::linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) {
  LC_CHECK(gate_proj.out_features == up_proj.out_features && out.size(1) == up_proj.out_features &&
           x.size(1) == gate_proj.in_features && x.size(1) == up_proj.in_features);
  if (gate_proj.format != up_proj.format) return Ops::linear_silu_mul(out, scratch, x, gate_proj, up_proj);
  const cpu::QuantizedInputs* quantized = quantize_for(gate_proj, x);
  const int64_t num_inputs = x.size(0);
  pool_.parallel_for(out.size(1), row_grain(out.size(1), pool_.num_threads()), [&](int64_t begin, int64_t end) {
    const auto multiply = [&](Tensor y, const Weight& weight) {
      cpu::matmul_block(weight, {.out = y.data<float>() + begin,
                                 .out_stride = y.stride(0),
                                 .x = x.data<float>(),
                                 .x_stride = x.stride(0),
                                 .row_idx = nullptr,
                                 .num_inputs = num_inputs,
                                 .first_row = begin,
                                 .num_rows = end - begin,
                                 .quantized = quantized});
    };
    multiply(out, gate_proj);
    multiply(scratch, up_proj);
    for (int64_t t = 0; t < num_inputs; ++t)
      cpu::silu_mul_row(out.row<float>(t) + begin, out.row<float>(t) + begin, scratch.row<float>(t) + begin,
                        end - begin);
  });
}

void CpuOps::linear_per_head(Tensor out, Tensor x, const Weight& weight) {
  const int64_t num_heads = x.size(1), out_dim = out.size(2);
  LC_CHECK(x.size(2) == weight.in_features && num_heads * out_dim == weight.out_features && out.size(1) == num_heads,
           "linear_per_head ", out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ",
           weight.in_features, "]");
  // Packed rows are multiplied in groups. A head that begins inside a group computes all rows of it.
  const auto multiply_head = [&](int64_t head) {
    const int64_t skipped = is_packed(weight.format) ? head * out_dim % kPackedRows : 0;
    cpu::MatmulBlock block{.out = out.data<float>() + head * out.stride(1),
                           .out_stride = out.stride(0),
                           .x = x.data<float>() + head * x.stride(1),
                           .x_stride = x.stride(0),
                           .row_idx = nullptr,
                           .num_inputs = x.size(0),
                           .first_row = head * out_dim - skipped,
                           .num_rows = skipped + out_dim};
    if (skipped == 0) return cpu::matmul_block(weight, block);
    thread_local std::vector<float> rows;  // grows once
    rows.resize(static_cast<size_t>(block.num_inputs * block.num_rows));
    float* const to = std::exchange(block.out, rows.data());
    block.out_stride = block.num_rows;
    cpu::matmul_block(weight, block);
    for (int64_t i = 0; i < block.num_inputs; ++i)
      std::copy_n(rows.data() + i * block.num_rows + skipped, out_dim, to + i * out.stride(0));
  };
  pool_.parallel_for(num_heads, grain_for(x.size(0) * out_dim * x.size(2)), [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) multiply_head(head);
  });
}

}  // namespace longcat
