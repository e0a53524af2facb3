// MLA decode over lists of positions, for the proof of what it adds to MLA decode (mla_rows.h).
#pragma once

#include "cuda/kernels/mla_decode.h"

namespace longcat::gpu {

using SelectedBf16 = MlaDecode<DType::bf16, 16, true>;
using SelectedFp8 = MlaDecode<DType::f8_e4m3, 16, true>;

}  // namespace longcat::gpu
