// A model of bf16 matrix products on a GPU of compute capability 9.0, bit for bit, on the CPU.
#pragma once

#include "base/dtype.h"

namespace longcat {

// Returns c + the dot product of 16 pairs, as one mma.sync m16n8k16 or wgmma k16 computes an element. Products and c
// are aligned to the largest exponent among them, cut to 25 fractional bits, and added exactly; the sum is cut to f32.
// Model: "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix Cores", arXiv 2511.10909. Inputs must be
// finite, and the sum below 2^127.
float hopper_dot(const bf16* a, const bf16* b, float c);

// The same for factors that serve several products. value = significand * 2^(exponent - 7); subnormals and zero keep
// the lowest exponent.
struct HopperFactor {
  int32_t significand;
  int exponent;
};
HopperFactor hopper_factor(bf16 value);
float hopper_dot(const HopperFactor* a, const HopperFactor* b, float c);

// Returns the dot product of `count` values, a multiple of 16, in ascending order with one accumulator.
float hopper_chain(const bf16* a, const bf16* b, int64_t count);

}  // namespace longcat
