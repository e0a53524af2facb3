#pragma once

#include "harness.h"
#include "model/weights.h"

namespace longcat {

// Weights of the config's shapes, made on the device: bf16 (experts in fp8 on request), norms of 1, and no tables yet.
// The same for every device.
ModelWeights random_weights(Bench& bench, bool fp8_experts = false);

// The N-gram tables as `placement` has them, in place of those that `weights` names; their memory goes to its storage.
// Throws OutOfMemory.
void make_tables(Bench& bench, ModelWeights& weights, Placement placement);
int64_t table_bytes(const ModelConfig& config);

// What `weights` names, without its memory.
ModelWeights views_of(const ModelWeights& weights);

}  // namespace longcat
