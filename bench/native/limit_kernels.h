// Kernels that measure what an instruction set can do at most.
#pragma once

#include <cstdint>

#include "cpu/simd/dispatch.h"

namespace longcat::bench {

struct LimitKernels {
  // Reads n floats from memory, a multiple of 64.
  float (*sum_of)(const float* p, int64_t n);

  // `count` rounds of `each` operations, 2 a multiply-add; null: no such kernel. f32 needs no memory. int8 and int4
  // read w [4096] and add exact products in 32 bits. int8 takes two signed factors of 8 bits. int4 takes one unsigned
  // factor so small that two products fit 16 bits, such as a weight of 4 bits.
  struct Rate {
    int32_t (*run)(const int8_t* w, int64_t count);
    double each;
  } f32, int8, int4;
};

}  // namespace longcat::bench
