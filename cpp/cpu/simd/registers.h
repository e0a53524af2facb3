// Register: the vector register of the instruction set that a kernel file is compiled for (simd/dispatch.h). Kernels
// are written once over its functions. portable.h explains them; each other set has the same functions in its own
// instructions.
#pragma once

#if defined(__AVX512VNNI__)
#include "cpu/simd/avx512.h"
namespace longcat::vec {
using Register = Avx512;
}
#elif defined(__AVXVNNI__)
#include "cpu/simd/avx_vnni.h"
namespace longcat::vec {
using Register = AvxVnni;
}
#elif defined(__AVX2__)
#include "cpu/simd/avx2.h"
namespace longcat::vec {
using Register = Avx2;
}
#elif defined(__ARM_FEATURE_DOTPROD)
#include "cpu/simd/neon.h"
namespace longcat::vec {
using Register = Neon;
}
#else
#include "cpu/simd/portable.h"
namespace longcat::vec {
using Register = Portable;
}
#endif
