// Norms, residual sums, activation functions, row gathers. Each is bound by the bytes it moves: one block per row and
// one pass over memory. Shared memory [4 * dim bytes] keeps the row between the sum of squares and the result.
#include <cmath>

#include "cuda/cuda_ops.h"
#include "cuda/kernels/block.h"
#include "cuda/kernels/elementwise.h"
#include "cuda/kernels/silu.h"

namespace longcat {

namespace {

using gpu::Block;
using gpu::View;

// x += routed (unless empty), x += row_weight * y, each rounded like the separate operations, then AddRmsNorm. x stays
// as it was.
struct AddShortcutRmsNorm {
  static constexpr int kThreads = gpu::AddRmsNorm::kThreads;
  gpu::AddRmsNorm norm;
  View routed, y;           // [T, dim]; routed may be empty
  const float* row_weight;  // [T] f32

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    const View& x = norm.x;
    norm.normalise(block, [&](auto count, int64_t k) {
      auto values = gpu::get_values<count()>(x, t * x.stride0 + k);
      if (routed.data) {
        const auto more = gpu::get_values<count()>(routed, t * routed.stride0 + k);
        LC_UNROLL for (int i = 0; i < count(); ++i) values.v[i] = x.rounded(values.v[i] + more.v[i]);
      }
      const auto shortcut = gpu::get_values<count()>(y, t * y.stride0 + k);
      LC_UNROLL for (int i = 0; i < count(); ++i) values.v[i] = x.rounded(values.v[i] + row_weight[t] * shortcut.v[i]);
      return values;
    });
  }
};

// x += y * row_weight. Without row_weight, the factor is 1.
struct AddRows {
  static constexpr int kThreads = 256;
  View x, y;                // [T, dim]
  const float* row_weight;  // [T] f32, or null
  int64_t dim;
  bool wide;

  LC_HD void operator()(const Block& block) const {
    const int64_t t = block.index;
    const float weight = row_weight ? row_weight[t] : 1.0f;
    gpu::for_each_values(block, dim, wide, [&](auto count, int64_t k) {
      auto values = gpu::get_values<count()>(x, t * x.stride0 + k);
      const auto more = gpu::get_values<count()>(y, t * y.stride0 + k);
      LC_UNROLL for (int i = 0; i < count(); ++i) values.v[i] += weight * more.v[i];
      gpu::set_values(x, t * x.stride0 + k, values);
    });
  }
};

void add_rows(GpuDevice& device, Tensor x, Tensor y, const float* row_weight) {
  const int64_t dim = x.size(1);
  gpu::launch(device, x.size(0), 0,
              AddRows{.x = View(x),
                      .y = View(y),
                      .row_weight = row_weight,
                      .dim = dim,
                      .wide = gpu::is_wide(View(x), dim) && gpu::is_wide(View(y), dim)});
}

// One block joins the parts of one row of logits, one behind the other.
struct MergeVocabParts {
  static constexpr int kThreads = 256;
  float* out;          // [num_rows, num_parts * part_size]
  const float* parts;  // [num_parts, rows_of_a_part, part_size]
  int64_t num_parts, rows_of_a_part, part_size;

  LC_HD void operator()(const Block& block) const {
    for (int64_t part = 0; part < num_parts; ++part) {
      const float* from = parts + (part * rows_of_a_part + block.index) * part_size;
      float* to = out + (block.index * num_parts + part) * part_size;
      block.for_each(part_size, [&](int64_t i) { to[i] = from[i]; });
    }
  }
};

}  // namespace

namespace gpu {

LC_HD void SiluMul::operator()(const Block& block) const {
  const int64_t t = block.index;
  if (num_rows && t >= *num_rows) return;
  for_each_values(block, dim, wide, [&](auto count, int64_t k) {
    auto values = get_values<count()>(gate, t * gate.stride0 + k);
    const auto factors = get_values<count()>(up, t * up.stride0 + k);
    LC_UNROLL for (int i = 0; i < count(); ++i) values.v[i] = silu(values.v[i]) * factors.v[i];
    set_values(out, t * out.stride0 + k, values);
  });
}

LC_HD void GatherRows::operator()(const Block& block) const {
  const int64_t i = block.index;
  if (num_rows && i >= *num_rows) return;
  const int64_t from = rows[i] * x.stride0;
  for_each_values(block, dim, wide, [&](auto count, int64_t k) {
    set_values(out, i * out.stride0 + k, get_values<count()>(x, from + k));
  });
}

void silu_mul(GpuDevice& device, int64_t num_blocks, SiluMul kernel) {
  kernel.wide = is_wide(kernel.out, kernel.dim) && is_wide(kernel.gate, kernel.dim) && is_wide(kernel.up, kernel.dim);
  launch(device, num_blocks, 0, kernel);
}
void gather_rows(GpuDevice& device, int64_t num_blocks, GatherRows kernel) {
  kernel.wide = is_wide(kernel.out, kernel.dim) && is_wide(kernel.x, kernel.dim);
  launch(device, num_blocks, 0, kernel);
}

}  // namespace gpu

void CudaOps::rms_norm(Tensor out, Tensor x, Tensor weight, float eps) { add_rms_norm(out, x, {}, weight, eps); }

void CudaOps::add_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor weight, float eps) {
  gpu::launch(*device_, residual.size(0), residual.size(1) * 4, gpu::AddRmsNorm(out, residual, x, weight, eps));
}

void CudaOps::add_shortcut_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor routed, Tensor y, Tensor row_weight,
                                    Tensor weight, float eps) {
  AddShortcutRmsNorm kernel{.norm = gpu::AddRmsNorm(out, residual, x, weight, eps),
                            .routed = View(routed),
                            .y = View(y),
                            .row_weight = row_weight.data<float>()};
  kernel.norm.wide =
      kernel.norm.wide && gpu::is_wide(kernel.routed, kernel.norm.dim) && gpu::is_wide(kernel.y, kernel.norm.dim);
  gpu::launch(*device_, residual.size(0), residual.size(1) * 4, kernel);
}

void CudaOps::add(Tensor x, Tensor y) { add_rows(*device_, x, y, nullptr); }

void CudaOps::add_scaled_rows(Tensor x, Tensor y, Tensor row_weight) {
  add_rows(*device_, x, y, row_weight.data<float>());
}

void CudaOps::silu_mul(Tensor out, Tensor gate, Tensor up) {
  gpu::silu_mul(*device_, out.size(0),
                {.out = View(out), .gate = View(gate), .up = View(up), .dim = out.size(1), .num_rows = nullptr});
}

void CudaOps::gather_rows(Tensor out, Tensor x, Tensor rows) {
  gpu::gather_rows(
      *device_, rows.size(0),
      {.out = View(out), .x = View(x), .rows = rows.data<int32_t>(), .dim = x.size(1), .num_rows = nullptr});
}

void CudaOps::merge_vocab_parts(Tensor out, Tensor parts) {
  LC_CHECK(out.is_contiguous() && parts.is_contiguous() && parts.size(1) >= out.size(0));
  gpu::launch(*device_, out.size(0), 0,
              MergeVocabParts{.out = out.data<float>(),
                              .parts = parts.data<float>(),
                              .num_parts = parts.size(0),
                              .rows_of_a_part = parts.size(1),
                              .part_size = parts.size(2)});
}

}  // namespace longcat
