// Linear layers. One weight row at a time against all inputs: the row stays in the first-level cache, each output is
// one dot product of the same order whatever the number of inputs.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/cpu_ops.h"
#include "cpu/matmul.h"
#include "cpu/vec.h"

namespace longcat {

namespace cpu {

namespace {

template <class T>
LC_INLINE void dot_rows(const T* rows, int64_t in_features, const MatmulBlock& b) {
  for (int64_t r = 0; r < b.num_rows; ++r) {
    const T* row = rows + r * in_features;
    for (int64_t i = 0; i < b.num_inputs; ++i) {
      const float* x = b.x + (b.row_idx ? b.row_idx[i] : i) * b.x_stride;
      b.out[i * b.out_stride + r] = vec::dot(x, row, in_features);
    }
  }
}

LC_CLONES void dot_rows_f32(const float* rows, int64_t in_features, const MatmulBlock& b) {
  dot_rows(rows, in_features, b);
}
LC_CLONES void dot_rows_bf16(const bf16* rows, int64_t in_features, const MatmulBlock& b) {
  dot_rows(rows, in_features, b);
}

void read_fp8_row(float* out, const Weight& weight, int64_t row) {
  const uint8_t* data = static_cast<const uint8_t*>(weight.data) + row * weight.in_features;
  const int64_t blocks_per_row = (weight.in_features + kFp8Block - 1) / kFp8Block;
  const float* scales = weight.scales + (row / kFp8Block) * blocks_per_row;
  for (int64_t k = 0; k < weight.in_features; ++k) out[k] = e4m3_to_float(data[k]) * scales[k / kFp8Block];
}

}  // namespace

void matmul_block(const Weight& weight, const MatmulBlock& block) {
  const int64_t first = block.first_row * weight.in_features;
  switch (weight.format) {
    case WeightFormat::f32:
      return dot_rows_f32(static_cast<const float*>(weight.data) + first, weight.in_features, block);
    case WeightFormat::bf16:
      return dot_rows_bf16(static_cast<const bf16*>(weight.data) + first, weight.in_features, block);
    case WeightFormat::fp8_block: {
      thread_local std::vector<float> row;  // grows to the widest layer once
      row.resize(static_cast<size_t>(weight.in_features));
      MatmulBlock one = block;
      one.num_rows = 1;
      for (int64_t r = 0; r < block.num_rows; ++r) {
        read_fp8_row(row.data(), weight, block.first_row + r);
        one.out = block.out + r;
        dot_rows_f32(row.data(), weight.in_features, one);
      }
    }
  }
}

void read_row(float* out, const Weight& weight, int64_t row) {
  const int64_t n = weight.in_features;
  switch (weight.format) {
    case WeightFormat::f32:
      std::memcpy(out, static_cast<const float*>(weight.data) + row * n, static_cast<size_t>(n) * 4);
      return;
    case WeightFormat::bf16: {
      const bf16* data = static_cast<const bf16*>(weight.data) + row * n;
      for (int64_t k = 0; k < n; ++k) out[k] = to_float(data[k]);
      return;
    }
    case WeightFormat::fp8_block:
      return read_fp8_row(out, weight, row);
  }
}

}  // namespace cpu

// Kernels read whole elements: a plane that the file leaves unaligned is copied.
Weight CpuOps::prepare(const Weight& logical, Buffer& storage) {
  const auto misaligned = [](const void* data, size_t alignment) {
    return reinterpret_cast<uintptr_t>(data) % alignment != 0;
  };
  const int64_t count = logical.out_features * logical.in_features;
  Weight weight = logical;
  switch (logical.format) {
    case WeightFormat::f32:
    case WeightFormat::bf16: {
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
  }
  return weight;
}

void CpuOps::linear(Tensor out, Tensor x, const Weight& weight) {
  LC_CHECK(x.size(1) == weight.in_features && out.size(1) == weight.out_features && x.size(0) == out.size(0), "linear ",
           out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ", weight.in_features, "]");
  const int64_t grain = grain_for(weight.in_features * x.size(0));
  pool_.parallel_for(weight.out_features, grain, [&](int64_t begin, int64_t end) {
    cpu::matmul_block(weight, {.out = out.data<float>() + begin,
                               .out_stride = out.stride(0),
                               .x = x.data<float>(),
                               .x_stride = x.stride(0),
                               .row_idx = nullptr,
                               .num_inputs = x.size(0),
                               .first_row = begin,
                               .num_rows = end - begin});
  });
}

void CpuOps::linear_per_head(Tensor out, Tensor x, const Weight& weight) {
  const int64_t num_heads = x.size(1), out_dim = out.size(2);
  LC_CHECK(x.size(2) == weight.in_features && num_heads * out_dim == weight.out_features && out.size(1) == num_heads,
           "linear_per_head ", out.shape_string(), " = ", x.shape_string(), " x [", weight.out_features, ", ",
           weight.in_features, "]");
  pool_.parallel_for(num_heads, grain_for(x.size(0) * out_dim * x.size(2)), [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      cpu::matmul_block(weight, {.out = out.data<float>() + head * out.stride(1),
                                 .out_stride = out.stride(0),
                                 .x = x.data<float>() + head * x.stride(1),
                                 .x_stride = x.stride(0),
                                 .row_idx = nullptr,
                                 .num_inputs = x.size(0),
                                 .first_row = head * out_dim,
                                 .num_rows = out_dim});
  });
}

}  // namespace longcat
