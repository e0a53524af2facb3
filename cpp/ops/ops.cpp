#include "ops/ops.h"

namespace longcat {

std::span<const Placement> Ops::table_placements() const {
  static constexpr Placement kPlacements[] = {Placement::disk};
  return kPlacements;
}

Weight Ops::draft_head(const Weight& head, Buffer&) { return head; }

Weight Ops::first_rows(const Weight& weight, int64_t rows, Buffer&) {
  LC_CHECK(rows % kFp8Block == 0 && rows <= weight.out_features && weight.format != WeightFormat::bf16_planes);
  Weight first = weight;
  first.out_features = rows;
  return first;
}

Weight Ops::prepare_table(const Weight& logical, Placement, const ReadPlane&, Buffer& storage, HostBuffer&) {
  return prepare(logical, storage);
}

void Ops::linear_pair(Tensor out_a, Tensor out_b, Tensor x, const Weight& weight_a, const Weight& weight_b) {
  linear(out_a, x, weight_a);
  linear(out_b, x, weight_b);
}

void Ops::linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) {
  linear(out, x, gate_proj);
  linear(scratch, x, up_proj);
  silu_mul(out, out, scratch);
}

void Ops::add_shortcut_rms_norm(Tensor out, Tensor residual, Tensor x, Tensor routed, Tensor y, Tensor row_weight,
                                Tensor weight, float eps) {
  if (!routed.empty()) add(x, routed);
  add_scaled_rows(x, y, row_weight);
  add_rms_norm(out, residual, x, weight, eps);
}

void Ops::mla_norm_store(Tensor q_a, Tensor q_a_norm, Tensor latents, Tensor kv_a, Tensor kv_a_norm, float eps,
                         Tensor cos, Tensor sin, const ForwardBatch& batch) {
  rms_norm(q_a, q_a, q_a_norm, eps);
  mla_store(latents, kv_a, kv_a_norm, eps, cos, sin, batch);
}

}  // namespace longcat
