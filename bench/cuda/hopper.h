// The arithmetic of bf16 matrix products on a GPU of 9.0, bit for bit, on the CPU.
#pragma once

#include "base/dtype.h"

namespace longcat {

// c + the dot product of 16 pairs, as one mma.sync m16n8k16 or wgmma k16 computes an element: products and c are
// aligned to the largest exponent among them, keep 25 fractional bits, are truncated towards zero, added exactly, and
// the sum is truncated to f32. Model: "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix Cores", arXiv
// 2511.10909. Finite inputs whose sum is below 2^127.
float hopper_dot(const bf16* a, const bf16* b, float c);

// The same over `count` values, a multiple of 16, in ascending order with one accumulator.
float hopper_chain(const bf16* a, const bf16* b, int64_t count);

}  // namespace longcat
