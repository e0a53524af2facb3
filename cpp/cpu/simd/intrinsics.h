// The x86 intrinsics. GCC 12 warns of its own avx512fintrin.h (GCC bug 105593).
#pragma once

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
