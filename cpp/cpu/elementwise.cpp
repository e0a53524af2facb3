// Norms, residual sums, activation functions, row gathers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/cpu_ops.h"
#include "cpu/row_kernels.h"
#include "cpu/rows.h"

namespace longcat {

namespace cpu {

void add_scaled(float* y, float a, const float* x, int64_t n) { kernels<RowKernels>().add_scaled(y, a, x, n); }

void norm_row(float* out, const float* x, const float* weight, int64_t dim, float eps) {
  const float scale = 1.0f / std::sqrt(kernels<RowKernels>().sum_of_squares(x, dim) / static_cast<float>(dim) + eps);
  for (int64_t k = 0; k < dim; ++k) out[k] = x[k] * scale * weight[k];
}

void silu_mul_row(float* out, const float* gate, const float* up, int64_t n) {
  kernels<RowKernels>().silu_mul(out, gate, up, n);
}

}  // namespace cpu

void CpuOps::rms_norm(Tensor out, Tensor x, Tensor weight, float eps) {
  pool_.parallel_for(x.size(0), grain_for(x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu::norm_row(out.row<float>(t), x.row<float>(t), weight.data<float>(), x.size(1), eps);
  });
}

void CpuOps::add_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor weight, float eps) {
  const int64_t dim = residual.size(1);
  pool_.parallel_for(residual.size(0), grain_for(dim), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (!x.empty()) cpu::add_scaled(residual.row<float>(t), 1.0f, x.row<float>(t), dim);
      cpu::norm_row(out.row<float>(t), residual.row<float>(t), weight.data<float>(), dim, eps);
    }
  });
}

void CpuOps::add(Tensor x, Tensor y) {
  pool_.parallel_for(x.size(0), grain_for(x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) cpu::add_scaled(x.row<float>(t), 1.0f, y.row<float>(t), x.size(1));
  });
}

void CpuOps::add_scaled_rows(Tensor x, Tensor y, Tensor row_weight) {
  pool_.parallel_for(x.size(0), grain_for(x.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu::add_scaled(x.row<float>(t), row_weight.data<float>()[t], y.row<float>(t), x.size(1));
  });
}

void CpuOps::silu_mul(Tensor out, Tensor gate, Tensor up) {
  pool_.parallel_for(out.size(0), grain_for(8 * out.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      cpu::silu_mul_row(out.row<float>(t), gate.row<float>(t), up.row<float>(t), out.size(1));
  });
}

void CpuOps::gather_rows(Tensor out, Tensor x, Tensor rows) {
  for (int64_t i = 0; i < rows.size(0); ++i)
    std::memcpy(out.row<float>(i), x.row<float>(rows.data<int32_t>()[i]),
                static_cast<size_t>(x.size(1)) * sizeof(float));
}

void CpuOps::merge_vocab_parts(Tensor out, Tensor parts) {
  const int64_t part_size = parts.size(2);
  for (int64_t row = 0; row < out.size(0); ++row)
    for (int64_t part = 0; part < parts.size(0); ++part)
      std::copy_n(parts.index(0, part).row<float>(row), part_size, out.row<float>(row) + part * part_size);
}

}  // namespace longcat
