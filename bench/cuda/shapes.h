// The models that the suites measure.
#pragma once

#include "lite_config.h"

namespace longcat {

ModelConfig tiny_config();    // all its parts at sizes that the emulated device walks in seconds
ModelConfig parity_config();  // small, but of widths that the tensor cores take

}  // namespace longcat
