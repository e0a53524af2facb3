#include "ops/ops.h"

namespace longcat {

std::span<const Placement> Ops::table_placements() const {
  static constexpr Placement kPlacements[] = {Placement::disk};
  return kPlacements;
}

Weight Ops::prepare_table(const Weight& logical, Placement, const ReadPlane&, Buffer& storage, HostBuffer&) {
  return prepare(logical, storage);
}

void Ops::linear_silu_mul(Tensor out, Tensor scratch, Tensor x, const Weight& gate_proj, const Weight& up_proj) {
  linear(out, x, gate_proj);
  linear(scratch, x, up_proj);
  silu_mul(out, out, scratch);
}

}  // namespace longcat
