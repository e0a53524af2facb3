// The models that the suites measure, by their config.json.
#pragma once

#include "io/model_config.h"

namespace longcat {

ModelConfig lite_config();    // LongCat-Flash-Lite
ModelConfig tiny_config();    // all parts of the model, at sizes that the emulated device walks in seconds
ModelConfig parity_config();  // a small model whose widths fit the tensor cores

}  // namespace longcat
