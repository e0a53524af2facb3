// Finds damage in packed weights (ops/packed.h).
#pragma once

#include <cstdint>

#include "ops/weight.h"

namespace longcat {

// The first of `count` groups or rows with a scale or a value that is NaN or infinite; -1: there is none.
int64_t first_not_finite(const uint8_t* data, int64_t count, WeightFormat format, int64_t in_features);

}  // namespace longcat
