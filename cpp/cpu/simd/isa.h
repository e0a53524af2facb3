// The instruction sets the CPU kernels are written for.
#pragma once

namespace longcat {

// Each includes those before it.
enum class Isa {
  portable,
  avx2,         // and FMA
  avx512,       // F, BW, DQ, VL
  avx512_vnni,  // 8-bit products summed in 32 bits
};

// What the products of matrices use: the best this machine has, or less when the environment variable LONGCAT_ISA
// names it. Norms, softmax and sampling are compiled for each (LC_CLONES) and always run the machine's best.
// Throws Error when that names what the machine has not, or nothing known.
Isa cpu_isa();

const char* name_of(Isa isa);

}  // namespace longcat
