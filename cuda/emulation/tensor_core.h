// Computes ldmatrix and mma.sync of a warp, from the registers of its 32 lanes.
#pragma once

#include <cstdint>

namespace longcat::emulation {

enum class Arithmetic {
  plain,   // f32 multiply-adds, k ascending
  hopper,  // as on 9.0, bit for bit (hopper.h)
};

// d += a b, m16n8k16. Each argument has the pointers that the 32 lanes gave: d 4, a 4 and b 2 registers.
void mma_m16n8k16(float* const (&d)[32], const uint32_t* const (&a)[32], const uint32_t* const (&b)[32],
                  Arithmetic arithmetic);

// Registers of a matrix of 8 x 8, whose row i lies at rows[i]: of lane l to out[l].
void ldmatrix_8x8(uint32_t (&out)[32], const void* const (&rows)[8], bool transposed);

}  // namespace longcat::emulation
