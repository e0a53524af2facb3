// The instruction sets of the CPU kernels.
#pragma once

namespace longcat {

// Each set includes those before it.
enum class Isa {
  portable,
  avx2,         // and FMA
  avx512,       // F, BW, DQ, VL
  avx512_vnni,  // 8-bit products summed in 32 bits
};

// The set that matrix products use: the machine's best, or a lower one named by the environment variable LONGCAT_ISA.
// Norms, softmax and sampling are compiled for every level (LC_CLONES) and always use the machine's best. Throws Error
// when LONGCAT_ISA is unknown or not available on this machine.
Isa cpu_isa();

const char* name_of(Isa isa);

}  // namespace longcat
