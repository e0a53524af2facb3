// The output layer for draft tokens, in 4 bits.
#include "cpu/cpu_ops.h"
#include "cpu/gemm/matmul.h"
#include "cpu/gemm/pack.h"
#include "ops/packed.h"

namespace longcat {

// A step reads the head once for its own logits and once for each draft token after the other. Draft tokens need the
// largest logit alone. Checkpoints that are not packed keep their head: packing it takes about a second.
Weight CpuOps::draft_head(const Weight& head, Buffer& storage) {
  if (!is_x8(head.format) || is_int4(head.format)) return head;
  Weight packed{.format = WeightFormat::int4_x8, .out_features = head.out_features, .in_features = head.in_features};
  storage = Buffer(device_, packed.num_bytes());
  cpu::pack(pool_, static_cast<uint8_t*>(storage.data()), packed.format, head.out_features, head.in_features,
            [&](int64_t row, float* values) { cpu::read_row(values, head, row); });
  packed.data = storage.data();
  packed.placement = Placement::device;
  return packed;
}

}  // namespace longcat
