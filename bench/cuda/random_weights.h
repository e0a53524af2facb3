#pragma once

#include "harness.h"
#include "model/weights.h"

namespace longcat {

// Makes weights of the config's shapes on the device: bf16 (or what is multiplied in fp8), norms of 1, and no tables
// yet. Every device makes the same ones.
ModelWeights random_weights(Bench& bench, bool fp8 = false);

// Makes the N-gram tables at `placement`, in place of those of `weights`. Their memory goes to the storage of
// `weights`. Throws OutOfMemory.
void make_tables(Bench& bench, ModelWeights& weights, Placement placement);
int64_t table_bytes(const ModelConfig& config);

// Returns a copy of the views in `weights`, without their memory.
ModelWeights views_of(const ModelWeights& weights);

}  // namespace longcat
