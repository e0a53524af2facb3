// The activation function of FFNs and experts, with one rounding for all kernels.
#pragma once

#include "cuda/kernels/simt.h"

namespace longcat::gpu {

LC_HD inline float silu(float x) { return x / simt::add_rn(1.0f, expf(-x)); }

}  // namespace longcat::gpu
