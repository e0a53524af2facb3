#pragma once

#include "harness.h"
#include "model/weights.h"

namespace longcat {

// Weights of the config's shapes: bf16 (experts in fp8 on request), norms of 1, tables of zeros in pinned host memory
// (a row costs what it costs). The same for every device.
ModelWeights random_weights(Bench& bench, bool fp8_experts = false);

}  // namespace longcat
