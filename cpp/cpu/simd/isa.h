// The instruction sets of the CPU kernels.
#pragma once

#include <span>

namespace longcat {

enum class Isa {
  portable,      // what every processor of the architecture has: SSE2 on x86-64, NEON on Arm
  avx2,          // and FMA, F16C, BMI 1 and 2
  avx512,        // F, BW, DQ, VL
  avx512_vnni,   // 8-bit products summed in 32 bits
  avx512_bf16,   // bf16 products summed in f32
  neon_dotprod,  // Arm v8.2: 8-bit products summed in 32 bits
};

// The sets of this machine, from `portable` up. Each includes those before it.
std::span<const Isa> isas_of_this_machine();

// The set of all kernels: the machine's best, or a lower one named by the environment variable LONGCAT_ISA. Throws
// Error when LONGCAT_ISA is unknown or not available on this machine.
Isa cpu_isa();

const char* name_of(Isa isa);

}  // namespace longcat
