// The models that the suites measure.
#pragma once

#include "io/model_config.h"

namespace longcat {

ModelConfig lite_config();    // LongCat-Flash-Lite
ModelConfig tiny_config();    // all its parts at sizes that the emulated device walks in seconds
ModelConfig parity_config();  // small, but of widths that the tensor cores take

}  // namespace longcat
